"""Chain-of-thought decoding: branches, margins and answers, solved by hand and against a slow reference."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel, check_decoder, next_log_probs

# Token 3 ends. After 0 the model is torn between 1 and 2; after 1 it wavers, after 2 it is sure.
TORN = MarkovModel(
    [
        [0.0, 0.5, 0.4, 0.1],
        [0.1, 0.25, 0.2, 0.45],
        [0.0, 0.0, 0.1, 0.9],
        [0.25, 0.25, 0.25, 0.25],
    ],
    end_ids=(3,),
)


def last(ids: list[int]) -> tuple[int, int]:
    return len(ids) - 1, len(ids)


def test_it_branches_on_the_first_token_and_ranks_by_the_margin_of_the_answer() -> None:
    out = dk.decode(TORN, [[0]], dk.CoTDecoding(3, answer=last, ids=True), max_new_tokens=3)
    # [1, 3]: 0.45 - 0.25; [2, 3]: 0.9 - 0.1; [3]: its only token has 0.5 - 0.4.
    assert out.hypotheses() == [[[2, 3], [1, 3], [3]]]
    torch.testing.assert_close(out.score, torch.tensor([[0.8, 0.2, 0.1]]))
    assert isinstance(out.report, dk.CoTAnswers)
    assert out.report.answers == [[(3,), (3,), (3,)]]
    torch.testing.assert_close(torch.tensor(out.report.total), torch.full((1, 3), 1.1))
    torch.testing.assert_close(out.log_prob.exp(), torch.tensor([[0.36, 0.225, 0.1]]))


def test_without_an_answer_the_whole_text_counts() -> None:
    out = dk.decode(TORN, [[0]], dk.CoTDecoding(2), max_new_tokens=3)
    assert out.hypotheses() == [[[2, 3], [1, 3]]]
    torch.testing.assert_close(out.score, torch.tensor([[(0.1 + 0.8) / 2, (0.1 + 0.2) / 2]]))


def test_aggregation_lets_the_answers_vote() -> None:
    def first(ids: list[int]) -> tuple[int, int] | None:
        return (0, 1) if ids[0] != 3 else None

    model = MarkovModel(
        [[0.0, 0.4, 0.3, 0.3], [0.0, 0.0, 0.0, 1.0], [0.0] * 3 + [1.0], [0.0] * 3 + [1.0]], (3,)
    )

    def parity(ids: list[int]) -> tuple[int, int]:
        return (1, 2) if len(ids) > 1 else (0, 1)

    out = dk.decode(
        model, [[0]], dk.CoTDecoding(3, answer=parity, ids=True, aggregate=True), max_new_tokens=2
    )
    # [1, 3] and [2, 3] answer (3,) with margin 1 each, and so does [3] with 0.1.
    assert out.score.tolist() == [[pytest.approx(2.1)] * 3]
    without = dk.decode(model, [[0]], dk.CoTDecoding(3, answer=first, ids=True), max_new_tokens=2)
    assert without.hypotheses()[0][2] == [3]  # no answer: last, and still returned
    assert without.score[0, 2] == -math.inf
    assert without.valid.all()
    assert without.report.answers[0][2] is None  # type: ignore[attr-defined]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), branches=st.integers(1, 6), new=st.integers(1, 5), aggregate=st.booleans())
def test_it_equals_the_slow_reference(seed: int, branches: int, new: int, aggregate: bool) -> None:  # noqa: FBT001
    model, prompts = HashModel(5, seed, end_ids=(0,)), [[1], [2, 3]]
    decoder = dk.CoTDecoding(branches, answer=last, ids=True, aggregate=aggregate)
    out = dk.decode(model, prompts, decoder, max_new_tokens=new)
    for number, prompt in enumerate(prompts):
        log_probs, slow = next_log_probs(model), []
        for branch in range(min(branches, 5)):
            tokens: list[int] = []
            margin = 0.0
            while len(tokens) < new and tokens[-1:] != [0]:
                added = log_probs(prompt + tokens)
                ranked = sorted(range(5), key=lambda token: -added[token])
                margin = math.exp(added[ranked[0]]) - math.exp(added[ranked[1]])
                tokens.append(ranked[branch if not tokens else 0])
            slow.append((tokens, margin))
        totals = {tokens[-1]: sum(m for other, m in slow if other[-1] == tokens[-1]) for tokens, _ in slow}
        slow.sort(key=lambda pair: (-totals[pair[0][-1]] if aggregate else 0.0, -pair[1]))
        assert [tokens for tokens, _ in slow] == out.hypotheses()[number]
        for rank, (tokens, margin) in enumerate(slow):
            expected = totals[tokens[-1]] if aggregate else margin
            assert out.score[number, rank].item() == pytest.approx(expected, abs=1e-5)
        assert out.valid[number].sum() == len(slow)


def test_branches_that_a_processor_bans_are_missing() -> None:
    out = dk.decode(TORN, [[0]], dk.CoTDecoding(4), dk.SuppressTokens([1]), max_new_tokens=1)
    assert out.hypotheses() == [[[2], [3]]]
    assert out.finish_reason == [["length", "end", "missing", "missing"]]
    with pytest.raises(dk.DecodingError, match="every token is banned"):
        dk.decode(TORN, [[0]], dk.CoTDecoding(2), dk.SuppressTokens([0, 1, 2, 3]), max_new_tokens=1)


def test_an_answer_is_found_in_the_text() -> None:
    def word(text: str) -> tuple[int, int] | None:
        found = re.search(r"\w+", text)
        return found and found.span()

    out = dk.decode(
        dk.load(), ["Once upon a", "She was as"], dk.CoTDecoding(3, answer=word), max_new_tokens=3
    )
    assert isinstance(out.report, dk.CoTAnswers)
    assert out.texts is not None
    for texts, answers in zip(out.texts, out.report.answers, strict=True):
        assert [found and found[0] for found in (re.search(r"\w+", text) for text in texts)] == answers


@pytest.mark.slow
def test_it_keeps_the_contract_of_decoders() -> None:
    for decoder in (dk.CoTDecoding(3), dk.CoTDecoding(9, answer=last, ids=True, aggregate=True)):
        check_decoder(decoder, max_examples=15)
    check_decoder(dk.CoTDecoding(2), stop=dk.EndIds([3, 4]), max_examples=15)


@pytest.mark.parametrize("branches", [0, -1, 2.0, True, "3"])
def test_branches_must_be_a_count(branches: object) -> None:
    with pytest.raises(ValueError, match="CoTDecoding: branches must be an integer of at least 1"):
        dk.CoTDecoding(branches)  # type: ignore[arg-type]


def test_what_is_no_answer_is_refused() -> None:
    with pytest.raises(TypeError, match="answer must be a function"):
        dk.CoTDecoding(2, answer="42")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ids and aggregate must be True or False"):
        dk.CoTDecoding(2, aggregate=1)  # type: ignore[arg-type]
    with pytest.raises(dk.DecodekitError, match="no tokenizer"):
        dk.decode(TORN, [[0]], dk.CoTDecoding(2, answer=lambda text: (0, 1)), max_new_tokens=1)  # noqa: ARG005
    for span in ((0, 9), (1, 1), (-1, 1), 3, "no"):
        decoder = dk.CoTDecoding(2, answer=lambda ids: span, ids=True)  # type: ignore[arg-type, return-value]  # noqa: ARG005, B023
        with pytest.raises(dk.DecodekitError, match="answer must return the span of the answer"):
            dk.decode(TORN, [[0]], decoder, max_new_tokens=2)
