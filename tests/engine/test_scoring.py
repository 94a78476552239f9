"""Log-probabilities of given text."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel, next_log_probs
from decodekit.testing.strategies import prompts

MODEL = MarkovModel([[0.1, 0.7, 0.2], [0.3, 0.1, 0.6], [0.4, 0.35, 0.25]])


@pytest.fixture(scope="module")
def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=1100, eos_token_id=None)
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(5)
    return model


def by_hand(model: GPT2LMHeadModel, prompt: list[int], continuation: list[int]) -> torch.Tensor:
    """The teaching notebook's way: shift, gather; one text, no padding, in the model's precision."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + continuation])).logits[0, :-1]
    log_probs = logits.log_softmax(-1)[len(prompt) - 1 :]
    return log_probs.gather(1, torch.tensor(continuation)[:, None])[:, 0]


def test_each_token_is_scored_after_the_ones_before_it() -> None:
    scored = dk.score(MODEL, [[0]], [[1, 2, 0]])
    torch.testing.assert_close(scored.token_log_probs.exp(), torch.tensor([[[0.7, 0.6, 0.4]]]))
    torch.testing.assert_close(scored.log_prob.exp(), torch.tensor([[0.7 * 0.6 * 0.4]]))


def test_a_prompt_may_have_several_continuations_of_different_lengths() -> None:
    scored = dk.score(MODEL, [[0], [2, 1]], [[[1], [2, 2]], [[0, 1, 1]]])
    assert scored.lengths.tolist() == [[1, 2], [3, 0]]
    assert scored.valid.tolist() == [[True, True], [True, False]]
    expected = torch.tensor([[0.7, 0.2 * 0.25], [0.3 * 0.7 * 0.1, 0.0]])
    torch.testing.assert_close(scored.log_prob.exp(), expected)


@pytest.mark.parametrize(
    ("batch", "continuations"),
    [
        ([[0], [1]], [[1, 2], [0, 0]]),
        ([[0], [1]], torch.tensor([[1, 2], [0, 0]])),
        ([[0], [1]], torch.tensor([[[1, 2]], [[0, 0]]])),
        ([[0], [1]], [torch.tensor([1, 2]), torch.tensor([0, 0])]),
        (torch.tensor([[0], [1]]), [[[1, 2]], [[0, 0]]]),
    ],
)
def test_continuations_come_in_many_forms(batch: Any, continuations: Any) -> None:  # noqa: ANN401
    expected = torch.tensor([[0.7 * 0.6], [0.3 * 0.1]])
    torch.testing.assert_close(dk.score(MODEL, batch, continuations).log_prob.exp(), expected)


@pytest.mark.parametrize(
    "batch",
    [
        [[0], [2, 0], [1, 0]],
        (torch.tensor([[1, 0], [2, 0], [1, 0]]), torch.tensor([[0, 1], [1, 1], [1, 1]])),
        {"input_ids": torch.tensor([[2, 0]] * 3), "attention_mask": torch.ones(3, 2)},
        torch.tensor([[0]] * 3),
        dk.Prompt.from_ids([[0], [2, 0], [1, 0]]),
    ],
)
def test_prompts_come_in_every_form_that_decode_takes(batch: Any) -> None:  # noqa: ANN401
    scored = dk.score(MODEL, batch, [[1], [1], [1]])
    torch.testing.assert_close(scored.log_prob.exp(), torch.full((3, 1), 0.7))
    out = dk.decode(MODEL, batch, dk.BeamSearch(2), max_new_tokens=3)
    torch.testing.assert_close(dk.score(MODEL, batch, out).token_log_probs, out.token_log_probs)


def test_a_single_prompt_takes_a_bare_continuation() -> None:
    torch.testing.assert_close(dk.score(MODEL, [0], [1, 2]).log_prob.exp(), torch.tensor([[0.7 * 0.6]]))


def test_nothing_said_is_certain() -> None:
    scored = dk.score(MODEL, [[0]], [[]])
    assert (scored.log_prob.tolist(), scored.lengths.tolist()) == ([[0.0]], [[0]])
    assert scored.tokens.shape == (1, 1, 0)


@settings(max_examples=30, deadline=None)
@given(batch=prompts(vocab=6), seed=st.integers(0, 2**31))
def test_it_equals_the_model_as_a_function_of_the_text(batch: list[list[int]], seed: int) -> None:
    model = HashModel(6, seed)
    log_probs = next_log_probs(model)
    continuations = [[3, 1, *prompt] for prompt in batch]
    scored = dk.score(model, batch, continuations)
    for number, (prompt, said) in enumerate(zip(batch, continuations, strict=True)):
        expected = sum(log_probs(prompt + said[:step])[token] for step, token in enumerate(said))
        # Python's double precision against single.
        assert math.isclose(expected, float(scored.log_prob[number, 0]), rel_tol=1e-5)


def test_a_batch_of_different_lengths_gives_what_each_text_alone_gives(gpt2: GPT2LMHeadModel) -> None:
    batch = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    continuations = [[20, 21], [30, 31, 32, 33], [40]]
    scored = dk.score(gpt2, batch, continuations)
    for number, (prompt, said) in enumerate(zip(batch, continuations, strict=True)):
        # Padding changes the order of sums in the attention.
        torch.testing.assert_close(
            by_hand(gpt2, prompt, said), scored.token_log_probs[number, 0, : len(said)], atol=1e-4, rtol=0
        )
    halves = dk.score(gpt2, batch, continuations, batch_size=2)
    torch.testing.assert_close(scored.log_prob, halves.log_prob, atol=1e-4, rtol=0)


def test_a_batch_is_one_forward_pass(gpt2: GPT2LMHeadModel) -> None:
    model, calls = dk.HFModel(gpt2), []
    dk.score(model, [[5, 6], [7]], [[7, 8, 9], [1]])  # asks the probe, the first time
    hook = gpt2.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(tuple(kwargs["input_ids"].shape)),  # noqa: ARG005
        with_kwargs=True,
    )
    dk.score(model, [[5, 6], [7]], [[7, 8, 9], [1]])
    hook.remove()
    assert calls == [(2, 4)]  # the last token predicts nothing


def test_a_thousand_tokens_neither_underflow_nor_drift(gpt2: GPT2LMHeadModel) -> None:
    tokens = torch.randint(97, (1024,), generator=torch.Generator().manual_seed(0)).tolist()
    scored = dk.score(gpt2, [[5]], [tokens])
    single = scored.token_log_probs[0, 0]
    assert single.dtype == scored.log_prob.dtype == torch.float32
    exact = by_hand(gpt2.double(), [5], tokens)
    gpt2.float()
    # The sum of the very numbers is right to the last bit of single precision ...
    assert scored.log_prob.item() == single.double().sum().float().item()
    # ... and the model's own rounding, about 1e-6 a token, does not add up to more than it must.
    assert abs(scored.log_prob.item() - exact.sum().item()) < 1e-3
    assert abs(exact.sum().item()) > 1000


def test_the_sum_of_1024_halves_is_exact() -> None:
    fair = MarkovModel([[0.5, 0.5], [0.5, 0.5]])
    log_prob = dk.score(fair, [[0]], [[0, 1] * 512]).log_prob.item()
    assert log_prob == pytest.approx(1024 * math.log(0.5), abs=1e-4)
    assert pytest.approx(5.56e-309, rel=1e-3) == 0.5**1024


def test_strings_are_read_in_the_context_of_their_prompt() -> None:
    model = dk.load()
    tokenizer = model.vocabulary.tokenizer
    assert tokenizer is not None
    prompt, said = "Once upon a", " time there was"
    scored = dk.score(model, prompt, said)
    assert scored.tokens[0, 0].tolist() == tokenizer.encode(prompt + said)[len(tokenizer.encode(prompt)) :]
    ids = dk.score(model, [tokenizer.encode(prompt)], [tokenizer.encode(said)])
    torch.testing.assert_close(scored.log_prob, ids.log_prob)


@pytest.mark.parametrize("decoder", [dk.Greedy(), dk.Sample(2, seeds=[3, 4]), dk.BeamSearch(4, num_return=3)])
def test_what_decode_reports_is_what_score_finds(decoder: dk.Decoder[Any]) -> None:
    model, batch = dk.load(), ["Once upon a time there was", "'Oh!' cried"]
    out = dk.decode(model, batch, decoder, [dk.NoRepeatNGram(2), dk.TopP(0.9)], max_new_tokens=24)
    scored = dk.score(model, batch, out)
    # One pass over the text against one pass a token: sums in another order.
    torch.testing.assert_close(out.token_log_probs, scored.token_log_probs, atol=1e-4, rtol=0)
    torch.testing.assert_close(out.log_prob, scored.log_prob, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("continuations", "message"),
    [
        ([[1]], "got 1 for 2 prompts"),
        ([[1], [2], [0]], "got 3 for 2 prompts"),
        ([[1], [3]], r"ids in \[0, 3\), got \[3\]"),
        ([[1], [-1]], r"got \[-1\]"),
        ([[1], [1.5]], r"got 1.5"),
        ([[1], ["text"]], "a string needs a tokenizer"),
    ],
)
def test_wrong_continuations_are_refused(continuations: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(dk.DecodekitError, match=message):
        dk.score(MODEL, [[0], [1]], continuations)


@pytest.mark.parametrize("continuations", [5, [["a", 5]], [[[1], 5]], None])
def test_what_is_no_continuation_is_refused(continuations: Any) -> None:  # noqa: ANN401
    with pytest.raises(dk.DecodekitError, match="score: "):
        dk.score(dk.load(), "a", continuations)


def test_a_result_of_other_prompts_is_refused() -> None:
    one, two = (dk.decode(MODEL, batch, dk.Greedy(), max_new_tokens=2) for batch in ([[0]], [[0], [1]]))
    with pytest.raises(dk.DecodekitError, match="got 1 for 2 prompts"):
        dk.score(MODEL, [[0], [1]], one)
    with pytest.raises(dk.DecodekitError, match="got 2 for 1 prompts"):
        dk.score(MODEL, [[0]], two)


@pytest.mark.parametrize("size", [0, -1, 1.5])
def test_batch_size_must_be_an_integer_of_at_least_one(size: int) -> None:
    with pytest.raises(dk.DecodekitError, match="score: batch_size must be"):
        dk.score(MODEL, [[0]], [[1]], batch_size=size)


def test_a_text_that_does_not_fit_the_positions_is_refused(gpt2: GPT2LMHeadModel) -> None:
    with pytest.raises(dk.ModelError, match="must fit the 1100 positions"):
        dk.score(gpt2, [[5] * 600], [[6] * 502])
    assert dk.score(gpt2, [[5] * 600], [[6] * 501]).lengths.tolist() == [[501]]


def test_repr_says_what_it_is_worth() -> None:
    assert repr(dk.score(MODEL, [[0]], [[1]])).startswith("Scored(log_prob=[[-0.35")


@pytest.mark.parametrize("prompt", ["Once upon a", [3, 4, 5]])
def test_several_continuations_of_a_prompt_that_is_not_in_a_list(prompt: str | list[int]) -> None:
    model = dk.load()
    several = dk.score(model, prompt, [" time", " castle"])
    assert several.log_prob.shape == (1, 2)
    assert torch.equal(several.log_prob, dk.score(model, [prompt], [[" time", " castle"]]).log_prob)


def test_integers_of_numpy_are_ids() -> None:
    model = dk.load()
    ids = [np.int64(5), np.int64(6)]
    assert torch.equal(dk.score(model, ids, ids).log_prob, dk.score(model, [5, 6], [5, 6]).log_prob)
