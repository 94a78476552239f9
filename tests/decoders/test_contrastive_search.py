"""Contrastive search."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float32, Int64
from torch import Tensor

import decodekit as dk
from decodekit.testing import HashModel, HashModelWithOutputs, MarkovModel, check_decoder
from decodekit.testing.strategies import prompts
from tests.equivalence.families import START, build
from tests.recorded.recorded import Case, cases, model

# The logits after a text, and the states of all its tokens.
Read = Callable[[list[int]], tuple[list[float], list[list[float]]]]


class OneDirectionATokenSession:
    """A toy's session whose states are directions: one for each token."""

    def __init__(self, inner: dk.Session, tokens: Int64[Tensor, "batch length"], vocab: int) -> None:
        self._inner, self._axes = inner, torch.eye(vocab)
        self.model_outputs = dk.ModelOutputs(prompt_hidden=self._axes[tokens])

    def advance(
        self, tokens: Int64[Tensor, " rows"], source_rows: Int64[Tensor, " rows"] | None
    ) -> Float32[Tensor, "rows vocab"]:
        self.model_outputs = dk.ModelOutputs(hidden=3 * self._axes[tokens])
        return self._inner.advance(tokens, source_rows)


class OneDirectionAToken(MarkovModel):
    """A repeated token is as like itself as can be, and unlike all others."""

    def start_with_outputs(
        self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int, outputs_spec: dk.ModelOutputsSpec
    ) -> tuple[OneDirectionATokenSession, Float32[Tensor, "rows vocab"]]:
        assert outputs_spec == dk.ModelOutputsSpec(hidden=True)
        inner, logits = self.start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)
        return OneDirectionATokenSession(inner, prompt.tokens, len(self.log_probs)), logits


# From each token: itself with 0.6, the next with 0.3, the one after with 0.1.
ROUND = OneDirectionAToken([[0.6, 0.3, 0.1], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]])


@pytest.mark.parametrize(
    ("k", "penalty", "expected"),
    [
        # 0.8 * 0.6 - 0.2 = 0.28 for what was said, against 0.8 * 0.3 = 0.24 for the next
        (2, 0.2, [0, 0, 0, 0]),
        # 0.7 * 0.6 - 0.3 = 0.12 against 0.7 * 0.3 = 0.21; once both are old, the likelier
        (2, 0.3, [1, 2, 2, 2]),
        # the third is never among two, and 0.7 * 0.1 is worth less than 0.21 among three
        (3, 0.3, [1, 2, 2, 2]),
        # likelihood does not count: of equals the likeliest, and two are new at first
        (3, 1.0, [1, 2, 2, 2]),
        (1, 0.9, [0, 0, 0, 0]),
    ],
)
def test_it_says_what_is_likely_and_unlike_what_came_before(
    k: int,
    penalty: float,
    expected: list[int],
) -> None:
    out = dk.decode(ROUND, [[0]], dk.ContrastiveSearch(k, penalty), max_new_tokens=4)
    assert [[expected]] == out.hypotheses()
    says = {(0, 0): 0.6, (0, 1): 0.3, (1, 2): 0.3, (2, 2): 0.6}
    probs = [says[pair] for pair in zip([0, *expected], expected, strict=False)]
    torch.testing.assert_close(out.token_log_probs.exp(), torch.tensor([[probs]]))
    assert out.finish_reason == [["length"]]


def test_a_banned_token_is_not_said_either_where_likelihood_does_not_count() -> None:
    decoder = dk.ContrastiveSearch(3, 1.0)
    out = dk.decode(ROUND, [[0]], decoder, dk.SuppressTokens([1]), max_new_tokens=2)
    assert out.hypotheses() == [[[2, 2]]]


def reference(
    read: Read,
    prompt: list[int],
    decoder: dk.ContrastiveSearch,
    new: int,
    ends: tuple[int, ...] = (),
    banned: tuple[int, ...] = (),
) -> list[int]:
    """Contrastive search over single texts, in Python's numbers."""
    text = list(prompt)
    for _ in range(new):
        logits, states = read(text)
        chances = [math.exp(logit - max(logits)) for logit in logits]
        allowed = [token for token in range(len(logits)) if token not in banned]
        total = sum(chances[token] for token in allowed)
        likeliest = sorted(allowed, key=lambda token: -chances[token])[: decoder.k]

        def worth(token: int) -> float:
            newest = read([*text, token])[1][-1]
            likeness = max(
                sum(map(float.__mul__, newest, state)) / math.hypot(*newest) / math.hypot(*state)
                for state in states  # noqa: B023
            )
            return (1 - decoder.penalty) * chances[token] / total - decoder.penalty * likeness  # noqa: B023

        text.append(max(likeliest, key=worth))
        if text[-1] in ends:
            break
    return text[len(prompt) :]


def read_toy(toy: HashModelWithOutputs) -> Read:
    def read(text: list[int]) -> tuple[list[float], list[list[float]]]:
        session, logits = toy.start_with_outputs(
            dk.Prompt.from_ids([text]),
            rows_per_prompt=1,
            capacity=9,
            outputs_spec=dk.ModelOutputsSpec(hidden=True),
        )
        assert session.model_outputs.prompt_hidden is not None
        return logits[0].tolist(), session.model_outputs.prompt_hidden[0].tolist()

    return read


@pytest.mark.slow
@settings(max_examples=12, deadline=None, database=None, derandomize=True)
@given(
    batch=prompts(vocab=6),
    seed=st.integers(0, 2**31),
    new=st.integers(1, 5),
    k=st.integers(1, 8),
    penalty=st.floats(0, 1),
)
def test_it_equals_the_slow_reference(
    batch: list[list[int]],
    seed: int,
    new: int,
    k: int,
    penalty: float,
) -> None:
    toy, decoder = HashModelWithOutputs(6, seed, end_ids=(1,)), dk.ContrastiveSearch(k, penalty)
    for processors, banned in (((), ()), (dk.SuppressTokens([0, 3, 5]), (0, 3, 5))):
        out = dk.decode(toy, batch, decoder, processors, max_new_tokens=new)
        for prompt, got in zip(batch, out.hypotheses(), strict=True):
            assert reference(read_toy(toy), prompt, decoder, new, ends=(1,), banned=banned) == got[0]


@pytest.mark.parametrize("decoder", [dk.ContrastiveSearch(1, 0.7), dk.ContrastiveSearch(5, 0.0)])
def test_one_candidate_or_no_penalty_is_greedy_search(decoder: dk.ContrastiveSearch) -> None:
    batch = [[1, 2], [3], [4, 5, 6, 7]]
    for seed in range(5):
        toy = HashModelWithOutputs(9, seed, end_ids=(2,))
        for processors in ((), dk.NoRepeatNGram(1), dk.RepetitionPenalty(1.5)):
            expected, got = (
                dk.decode(toy, batch, one, processors, max_new_tokens=6) for one in (dk.Greedy(), decoder)
            )
            assert expected.hypotheses() == got.hypotheses()
            assert torch.equal(expected.token_log_probs, got.token_log_probs)
            assert expected.finish_reason == got.finish_reason
    tied = OneDirectionAToken([[0.04, *[0.064] * 15]] * 16)
    assert dk.decode(tied, [[0]], decoder, max_new_tokens=2).hypotheses() == [[[1, 1]]]


@pytest.mark.slow
def test_it_keeps_the_laws_of_decoders() -> None:
    for decoder in (dk.ContrastiveSearch(3), dk.ContrastiveSearch(2, 1.0), dk.ContrastiveSearch(9)):
        check_decoder(decoder, model=HashModelWithOutputs, max_examples=6)
    criteria = (dk.RepetitionLoop(2, 1), dk.Confidence(0.2))
    check_decoder(dk.ContrastiveSearch(3), model=HashModelWithOutputs, stop=criteria, max_examples=6)


def test_a_stop_criterion_looks_at_what_was_decided() -> None:
    toy = HashModelWithOutputs(9)
    whole = dk.decode(toy, [[1, 2], [3]], dk.ContrastiveSearch(4), max_new_tokens=8).hypotheses()
    for length in range(1, 8):
        seen: list[list[int]] = []
        stop = dk.StopWhen(lambda ids: seen.append(list(ids)) or len(ids) >= length, ids=True)  # noqa: B023
        out = dk.decode(toy, [[1, 2], [3]], dk.ContrastiveSearch(4), stop=stop, max_new_tokens=8)
        assert [[text[0][:length]] for text in whole] == out.hypotheses()
        assert all(ids in (whole[0][0][: len(ids)], whole[1][0][: len(ids)]) for ids in seen)


def test_a_run_takes_one_step_more_and_says_on_which_row_each_token_was_offered() -> None:
    out = dk.decode(ROUND, [[0]], dk.ContrastiveSearch(2, 0.3), max_new_tokens=4, trace=2)
    assert out.trace is not None
    assert len(out.trace) == 5
    # 0 offers itself and 1 (which is row 1), 1 offers itself and 2 (row 1), and 2 offers itself (row 0).
    assert out.parents.tolist() == [[[0, 1, 1, 0]]]


def test_rows_of_a_finished_prompt_say_the_pad_id() -> None:
    toy = OneDirectionAToken([[0.1, 0.9, 0.0], [0.1, 0.0, 0.9], [0.8, 0.1, 0.1]])
    out = dk.decode(toy, [[0], [2]], dk.ContrastiveSearch(2), max_new_tokens=4, end_ids=1, pad_id=2, trace=1)
    assert out.hypotheses() == [[[1]], [[0, 1]]]
    assert out.trace is not None
    assert out.trace.steps[1].tokens.tolist()[:2] == [2, 2]


def test_what_is_decided_is_streamed() -> None:
    decoder, texts = dk.ContrastiveSearch(4), ["Once upon a time", "The king"]
    said = ["", ""]
    for piece in dk.stream(dk.load(), texts, decoder, max_new_tokens=6):
        said[piece.prompt] += piece.text
    assert [[text] for text in said] == dk.decode(dk.load(), texts, decoder, max_new_tokens=6).texts


def processors(case: Case) -> list[dk.LogitsProcessor]:
    made: dict[str, Callable[[Any], dk.LogitsProcessor]] = {
        "repetition_penalty": dk.RepetitionPenalty,
        "no_repeat_ngram_size": dk.NoRepeatNGram,
        "bad_words_ids": lambda words: dk.SuppressTokens([word[0] for word in words]),
    }
    return [make(case.settings[name]) for name, make in made.items() if name in case.settings]


def decode_as(case: Case) -> dk.Decoded:
    return dk.decode(
        model(case.model),
        case.prompts,
        dk.ContrastiveSearch(case.settings["top_k"], case.settings["penalty_alpha"]),
        processors(case),
        max_new_tokens=case.max_new_tokens,
        end_ids=case.end,
        pad_id=case.pad,
    )


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize("case", cases("transformers", "contrastive")[:-1], ids=str)
def test_it_says_what_transformers_4_55_said(case: Case) -> None:
    assert [[tokens] for tokens in case.sequences] == decode_as(case).hypotheses()


def read_plain(plain: Any, **given: Any) -> Read:  # noqa: ANN401 - a model of transformers
    name = "decoder_input_ids" if given else "input_ids"

    def read(text: list[int]) -> tuple[list[float], list[list[float]]]:
        with torch.no_grad():
            out = plain(**{name: torch.tensor([text])}, **given, output_hidden_states=True)
        states = out.decoder_hidden_states if given else out.hidden_states
        return out.logits[0, -1].tolist(), states[-1][0].tolist()

    return read


def test_a_banned_token_is_never_said_though_transformers_4_55_says_some() -> None:
    case = cases("transformers", "contrastive")[-1]
    banned = tuple(word[0] for word in case.settings["bad_words_ids"])
    decoder = dk.ContrastiveSearch(case.settings["top_k"], case.settings["penalty_alpha"])
    got = decode_as(case).hypotheses()
    read = read_plain(model(case.model))
    assert [
        [reference(read, prompt, decoder, case.max_new_tokens, banned=banned)] for prompt in case.prompts
    ] == got
    assert set(banned).isdisjoint(token for hypotheses in got for token in hypotheses[0])
    assert not set(banned).isdisjoint(token for tokens in case.sequences for token in tokens)


@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
def test_families_say_what_the_slow_reference_says(family: str) -> None:
    plain, texts, decoder = build(family), [[8, 9, 10, 11], [12], [13, 14]], dk.ContrastiveSearch(4)
    out = dk.decode(plain, texts, decoder, max_new_tokens=6, end_ids=())
    for text, got in zip(texts, out.hypotheses(), strict=True):
        given: dict[str, Any] = {} if family == "llama" else {"input_ids": torch.tensor([text])}
        prompt = [START] if given else text
        assert reference(read_plain(plain, **given), prompt, decoder, 6) == got[0]


def test_a_prompt_with_every_token_banned_is_an_error_that_names_it() -> None:
    class AfterFour(dk.StatelessProcessor):
        def process(self, history: dk.History, scores: Tensor) -> Tensor:
            return scores.masked_fill(history.tokens[:, :1] == 4, -torch.inf)

    with pytest.raises(dk.DecodingError, match="every token is banned for prompt 1"):
        dk.decode(HashModelWithOutputs(6), [[3], [4]], dk.ContrastiveSearch(2), AfterFour(), max_new_tokens=3)


def test_a_model_that_shows_no_states_is_refused() -> None:
    with pytest.raises(dk.DecodekitError, match="ContrastiveSearch needs a model that"):
        dk.decode(HashModel(6), [[3]], dk.ContrastiveSearch(2), max_new_tokens=3)


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "4"])
def test_there_must_be_a_candidate(k: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="ContrastiveSearch: k must be an integer of at least 1, got"):
        dk.ContrastiveSearch(k)


@pytest.mark.parametrize("penalty", [-0.1, 1.1, math.nan, math.inf, True, "0.6"])
def test_the_penalty_is_a_share(penalty: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"ContrastiveSearch: penalty must be in \[0, 1\], got"):
        dk.ContrastiveSearch(4, penalty)
