from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    SynthIDTextWatermarkingConfig,
    SynthIDTextWatermarkLogitsProcessor,
)

import decodekit as dk
from decodekit.testing import check_processor
from decodekit.testing.oracle import beam_search
from tests.processors.parity import LAWS

KEYS = (654, 400, 836, 123, 340)


def theirs_of(processor: dk.SynthID) -> SynthIDTextWatermarkLogitsProcessor:
    """Hugging Face's processor, in its initial state."""
    return SynthIDTextWatermarkLogitsProcessor(
        processor.ngram_len,
        list(processor.keys),
        processor.sampling_table_size,
        processor.sampling_table_seed,
        processor.context_history_size,
        torch.device("cpu"),
        processor.skip_first_ngram_calls,
    )


def by_hand(processor: dk.SynthID, context: list[int], probs: list[float]) -> list[float]:
    """One step's probabilities in plain Python, after these last new tokens."""
    table = torch.randint(
        0,
        2,
        (processor.sampling_table_size,),
        generator=torch.Generator().manual_seed(processor.sampling_table_seed),
    ).tolist()
    for key in processor.keys:
        wins = []
        for token in range(len(probs)):
            number = 1
            for part in (*context, token, key):
                number = ((number + part) * 6364136223846793005 + 1) % 2**64
            number -= 2**64 * (number >= 2**63)  # as a signed integer
            wins.append(table[number % processor.sampling_table_size])
        # Of two tokens drawn at random, the one with the larger number wins; a coin decides ties.
        after = []
        for token, prob in enumerate(probs):
            against = [1.0 if wins[token] == wins[u] else 2.0 * wins[token] for u in range(len(probs))]
            after.append(prob * sum(p * a for p, a in zip(probs, against, strict=True)))
        probs = after
    return probs


def run(processor: dk.SynthID, prompt: list[int], new: list[int], scores: Tensor) -> Tensor:
    """The scores after every one of the new tokens, and before the first, from the same scores."""
    history = dk.Prompt.from_ids([prompt]).history(len(prompt) + len(new) + 1, 1)
    memory, out = processor.init(history), []
    for token in [*new, 0]:
        processed, memory = processor.apply(history, scores, memory)
        out.append(processed[0])
        history = history.append(torch.tensor([token]))
    return torch.stack(out)


def test_synthid_is_a_tournament_between_pairs_of_tokens() -> None:
    scores = torch.tensor([[0.5, 0.2, 0.2, 0.1]]).log()
    processor = dk.SynthID(KEYS, 3)
    contexts = [[0, 0], [0, 2], [2, 1], [1, 3]]
    for actual, context in zip(run(processor, [3, 3], [2, 1, 3], scores), contexts, strict=True):
        expected = by_hand(processor, context, [0.5, 0.2, 0.2, 0.1])
        # float32 against float64
        assert actual.exp().tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_synthid_leaves_the_scores_where_the_context_occurred_before() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, 0.5]])
    out = run(dk.SynthID(KEYS, 2), [1], [1, 2, 1, 3, 2], scores)
    # Contexts: none, 1, 2, 1 (again), 3, 2 (again)
    same = [row.tolist() == scores[0].tolist() for row in out]
    assert same == [False, False, False, True, False, True]


def test_synthid_remembers_context_history_size_contexts() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, 0.5]])

    def repeated(size: int) -> list[bool]:
        out = run(dk.SynthID(KEYS, 2, context_history_size=size), [1], [1, 2, 1, 3, 2], scores)
        return [row.tolist() == scores[0].tolist() for row in out]

    assert repeated(3) == [False, False, False, True, False, True]
    assert repeated(2) == [False, False, False, True, False, False]
    assert repeated(1) == repeated(0) == [False] * 6


def test_synthid_can_skip_the_tokens_without_a_whole_context() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, 0.5]])
    out = run(dk.SynthID(KEYS, 3, skip_first_ngram_calls=True), [1], [1, 2, 3], scores)
    assert [row.tolist() == scores[0].tolist() for row in out] == [True, True, False, False]


def test_synthid_does_not_depend_on_the_prompt() -> None:
    scores = torch.randn(1, 9, generator=torch.Generator().manual_seed(0))
    out = [run(dk.SynthID(KEYS, 3), prompt, [4, 5, 6], scores).tolist() for prompt in ([1], [2, 3, 7, 8])]
    assert out[0] == out[1]


def test_synthid_keeps_the_distribution_on_average_over_keys() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.2]]).log()
    out = torch.stack([run(dk.SynthID([key], 2), [0], [], scores)[0].exp() for key in range(800)])
    # A standard deviation of a mean is below 0.5 / sqrt(800) = 0.018.
    assert out.mean(0).tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.07)


def test_synthid_takes_keys_as_a_tensor() -> None:
    assert dk.SynthID(torch.tensor([3, 4]), 5).keys == (3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keys": []}, r"keys must be one or more integers in \[0, 2\*\*63\), got \[\]"),
        ({"keys": [1, -1]}, "keys must be"),
        ({"keys": [2**63]}, "keys must be"),
        ({"keys": [0.5]}, "keys must be"),
        ({"keys": None}, "keys must be"),
        ({"ngram_len": 1}, "ngram_len must be an integer of at least 2, got 1"),
        ({"ngram_len": 2.0}, "ngram_len must be"),
        ({"context_history_size": -1}, "context_history_size must be an integer of at least 0, got -1"),
        ({"sampling_table_seed": -1}, "sampling_table_seed must be an integer of at least 0, got -1"),
        ({"sampling_table_size": 0}, r"sampling_table_size must be an integer in \[1, 2\*\*24\], got 0"),
        ({"sampling_table_size": 2**24 + 1}, "sampling_table_size must be"),
        ({"skip_first_ngram_calls": 1}, "skip_first_ngram_calls must be True or False, got 1"),
    ],
)
def test_synthid_refuses_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^SynthID: {message}"):
        dk.SynthID(**{"keys": KEYS, "ngram_len": 5, **arguments})


@pytest.mark.parametrize(
    "processor",
    [
        dk.SynthID(KEYS, 2),
        dk.SynthID([7], 5, context_history_size=1),
        dk.SynthID(KEYS, 3, skip_first_ngram_calls=True, sampling_table_size=64),
    ],
)
def test_synthid_keeps_the_contract_of_processors(processor: dk.SynthID) -> None:
    check_processor(processor, max_examples=20)


@settings(LAWS, max_examples=60)
@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=30),
    st.integers(2, 5),
    st.integers(0, 6),
    st.booleans(),
    st.sampled_from([2, 9, 300]),
    st.integers(0, 2**31),
)
def test_synthid_is_hugging_faces_at_every_step(
    keys: list[int],
    ngram_len: int,
    history_size: int,
    skip: bool,  # noqa: FBT001 - a parameter of the law
    vocab: int,
    seed: int,
) -> None:
    ours = dk.SynthID(
        keys,
        ngram_len,
        context_history_size=history_size,
        skip_first_ngram_calls=skip,
        sampling_table_seed=seed % 3,
        sampling_table_size=2**10,
    )
    theirs = theirs_of(ours)
    generator = torch.Generator().manual_seed(seed)
    history = dk.Prompt.from_ids([[1, 0, 1], [0, 0, 1]]).history(13, 1)
    memory = ours.init(history)
    for _ in range(10):
        scores = 3 * torch.randn(2, vocab, generator=generator)
        scores[:, seed % vocab] = -torch.inf
        before = history.tokens[:, : int(history.position)], scores.clone()
        expected = theirs(*before)
        out, memory = ours.apply(history, scores, memory)
        # Theirs turns minus infinity into the smallest number: the same probability, 0.
        assert expected.masked_fill(scores == -torch.inf, -torch.inf).tolist() == out.tolist()
        assert expected.softmax(-1).tolist() == out.softmax(-1).tolist()
        history = history.append(torch.randint(0, min(vocab, 3), (2,), generator=generator))


class TheirsUnderBeams(dk.LogitsProcessor):
    """Hugging Face's, called as its beam search calls it: the state stays where it is."""

    def __init__(self, processor: dk.SynthID) -> None:
        self.theirs = theirs_of(processor)

    def init(self, history: dk.History) -> tuple[()]:
        del history
        return ()

    def apply(self, history: dk.History, scores: Tensor, memory: tuple[()]) -> tuple[Tensor, tuple[()]]:
        return self.theirs(history.tokens[:, : int(history.position)], scores), memory


def watermarked_alone(processor: dk.SynthID, model: dk.Model, prompt: list[int]) -> Any:  # noqa: ANN401
    """The next log-probabilities of one text: Hugging Face's processor, told the text from its start."""

    def function(text: list[int]) -> list[float]:
        theirs = theirs_of(processor)
        for length in range(len(prompt), len(text) + 1):
            start = dk.Prompt.from_ids([text[:length]])
            _, logits = model.start(start, rows_per_prompt=1, capacity=length + 1)
            out = theirs(torch.tensor([text[:length]]), logits.log_softmax(-1))
        numbers: list[float] = out[0].tolist()
        return numbers

    return function


def test_synthid_follows_its_beams_and_hugging_faces_does_not() -> None:
    processor, prompt = dk.SynthID(KEYS, 3), [1, 2]
    beams = dk.BeamSearch(3, scorer=dk.LogProb(), stop_rule=dk.WhenFull(), num_return=3)
    theirs_agree = []
    for seed in range(6):
        model = dk.testing.HashModel(8, seed, scale=1.0)
        expected = beam_search(
            watermarked_alone(processor, model, prompt), prompt, 3, dk.LogProb(), lambda *_: False, set(), 6
        )
        ours = dk.decode(model, [prompt], beams, processor, max_new_tokens=6)
        assert [hypothesis.tokens for hypothesis in expected] == ours.hypotheses()[0]
        # float32 sums against float64
        assert [h.score for h in expected] == pytest.approx(ours.score[0].tolist(), abs=1e-4)
        theirs = dk.decode(model, [prompt], beams, TheirsUnderBeams(processor), max_new_tokens=6)
        theirs_agree.append([h.tokens for h in expected] == theirs.hypotheses()[0])
    assert not all(theirs_agree)


def test_synthid_of_hugging_face_reports_scores_that_are_not_its_beams_own() -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=20, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
    )
    model = GPT2LMHeadModel(config).eval()
    processor = dk.SynthID(KEYS, 3)
    watermark = SynthIDTextWatermarkingConfig(ngram_len=3, keys=list(KEYS))
    options: dict[str, Any] = {
        "do_sample": False,
        "length_penalty": 0.0,
        "pad_token_id": 0,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    ids = torch.tensor([[1, 2, 3]])

    def furthest_from_recomputed(new: int) -> float:
        out = model.generate(
            ids,
            num_beams=4,
            num_return_sequences=4,
            max_new_tokens=new,
            watermarking_config=watermark,
            **options,
        )
        recomputed = []
        for sequence in out.sequences:
            theirs, total = theirs_of(processor), 0.0
            for length in range(3, len(sequence)):
                text = sequence[None, :length]
                log_probs = theirs(text, model(text).logits[:, -1].log_softmax(-1))
                total += log_probs[0, sequence[length]].item()
            recomputed.append(total)
        reported = out.sequences_scores.tolist()
        return max(abs(a - b) for a, b in zip(reported, recomputed, strict=True))

    # The first beams come from one row: nothing to mix up yet, and float32 sums in another order.
    assert furthest_from_recomputed(1) < 1e-4
    assert furthest_from_recomputed(8) > 0.1
