import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import EncoderRepetitionPenaltyLogitsProcessor

import decodekit as dk
from decodekit.core.history import Source
from decodekit.testing import check_processor
from tests.processors.parity import LAWS, Call, assert_same_at_every_step, calls, history_of, step_scores

BANNED = -torch.inf
SCORES = torch.tensor([[2.0, -2.0, 2.0, -2.0]])


def pushed(processor: dk.EncoderRepetitionPenalty, history: dk.History, scores: torch.Tensor = SCORES) -> Any:  # noqa: ANN401
    rows = len(history.tokens)
    return step_scores(processor, history, scores.expand(rows, -1), [])[0]


def test_encoder_repetition_penalty_pushes_the_prompts_tokens_up() -> None:
    out = pushed(dk.EncoderRepetitionPenalty(2.0), history_of([[0, 1, 0]]))
    assert out == [[4.0, -1.0, 2.0, -2.0]]


def test_encoder_repetition_penalty_counts_no_new_tokens() -> None:
    out = step_scores(dk.EncoderRepetitionPenalty(2.0), history_of([[0]]), SCORES, [[2], [3]])
    assert out == [[[4.0, -2.0, 2.0, -2.0]]] * 3


def test_encoder_repetition_penalty_takes_the_encoders_input_without_its_padding() -> None:
    source = Source(torch.tensor([[2, 3], [1, 3]]), torch.tensor([[True, True], [True, False]]))
    history = replace(history_of([[0], [0]], rows_per_prompt=2), source=source)
    first, second = [2.0, -2.0, 4.0, -1.0], [2.0, -1.0, 2.0, -2.0]
    assert pushed(dk.EncoderRepetitionPenalty(2.0), history) == [first, first, second, second]
    # The rows of a prompt are reordered and go on in other numbers: the source follows the prompt.
    later = history.take(torch.tensor([2, 0, 1]))
    out = dk.EncoderRepetitionPenalty(2.0).apply(later, SCORES.expand(3, -1), torch.tensor(1))[0]
    assert out.tolist() == [second, first, first]


def test_encoder_repetition_penalty_takes_a_source_for_all_prompts_before_any_other() -> None:
    source = Source(torch.tensor([[2], [1]]), torch.ones(2, 1, dtype=torch.bool))
    history = replace(history_of([[0], [0]]), source=source)
    out = pushed(dk.EncoderRepetitionPenalty(2.0, source=[0, 3]), history)
    assert out == [[4.0, -2.0, 2.0, -1.0]] * 2


def test_encoder_repetition_penalty_takes_a_source_per_prompt_of_any_length() -> None:
    processor = dk.EncoderRepetitionPenalty(2.0, source=[[2], [], [0, 3]])
    out = pushed(processor, history_of([[0], [0], [0]]))
    assert out == [[2.0, -2.0, 4.0, -2.0], [2.0, -2.0, 2.0, -2.0], [4.0, -2.0, 2.0, -1.0]]


def test_encoder_repetition_penalty_does_not_count_padding() -> None:
    # Padding has the id 0.
    out = pushed(dk.EncoderRepetitionPenalty(2.0), history_of([[1, 0], [2]]))
    assert out == [[4.0, -1.0, 2.0, -2.0], [2.0, -2.0, 4.0, -2.0]]


def test_encoder_repetition_penalty_may_differ_by_prompt() -> None:
    out = pushed(dk.EncoderRepetitionPenalty([2.0, 4.0]), history_of([[0, 1], [0, 1]]))
    assert out == [[4.0, -1.0, 2.0, -2.0], [8.0, -0.5, 2.0, -2.0]]


def test_encoder_repetition_penalty_ignores_ids_outside_the_vocabulary() -> None:
    assert pushed(dk.EncoderRepetitionPenalty(2.0, source=[9, 0]), history_of([[0]])) == [
        [4.0, -2.0, 2.0, -2.0]
    ]


@pytest.mark.parametrize("penalty", [0, 0.0, -1, math.inf, math.nan, True, "2", None, [1.0, 0.0]])
def test_encoder_repetition_penalty_refuses_what_is_not_a_finite_number_above_zero(penalty: Any) -> None:  # noqa: ANN401
    message = r"^EncoderRepetitionPenalty: penalty must be a finite number above 0, got"
    with pytest.raises(ValueError, match=message):
        dk.EncoderRepetitionPenalty(penalty)


@pytest.mark.parametrize("source", [[-1], [1.0], [[0], [-1]], [[0], 1.5], [None], ["a"]])
def test_encoder_repetition_penalty_refuses_sources_that_are_not_ids(source: Any) -> None:  # noqa: ANN401
    message = r"^EncoderRepetitionPenalty: token ids must be integers of at least 0, got"
    with pytest.raises(ValueError, match=message):
        dk.EncoderRepetitionPenalty(2.0, source=source)


@pytest.mark.parametrize("source", [[], (), "ab", 3, torch.zeros(0, 2)])
def test_encoder_repetition_penalty_refuses_what_is_no_source(source: Any) -> None:  # noqa: ANN401
    message = r"^EncoderRepetitionPenalty: source must be ids, ids for each prompt or None, got"
    with pytest.raises(ValueError, match=message):
        dk.EncoderRepetitionPenalty(2.0, source=source)


def test_encoder_repetition_penalty_refuses_other_numbers_of_sources_than_of_prompts() -> None:
    message = r"^EncoderRepetitionPenalty: source must be one for all prompts, or one for each, got 2 for 3"
    with pytest.raises(ValueError, match=message):
        dk.EncoderRepetitionPenalty(2.0, source=[[0], [1]]).init(history_of([[0]] * 3))
    with pytest.raises(
        ValueError, match=r"^EncoderRepetitionPenalty: penalty must be one number, or one for"
    ):
        dk.EncoderRepetitionPenalty([2.0, 3.0]).init(history_of([[0]] * 3))


@pytest.mark.parametrize("source", [None, [0, 5], [[0, 5]]])
@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_encoder_repetition_penalty_keeps_the_contract_of_processors(penalty: float, source: Any) -> None:  # noqa: ANN401
    check_processor(dk.EncoderRepetitionPenalty(penalty, source), max_examples=20)


def test_encoder_repetition_penalty_per_prompt_keeps_the_contract_of_processors() -> None:
    check_processor(
        lambda prompts: dk.EncoderRepetitionPenalty(
            [1.5 + n for n in prompts], source=[[n, 5][n % 2 :] for n in prompts]
        ),
        max_examples=20,
    )


@LAWS
@given(calls(), st.floats(0.01, 100.0), st.integers(1, 6), st.integers(0, 2**31))
def test_encoder_repetition_penalty_is_hugging_faces_at_every_step(
    call: Call, penalty: float, length: int, seed: int
) -> None:
    tokens, scores = call
    rows, vocab = scores.shape
    source = torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(seed + 1))
    for given_ids, expected in ((source, source), (None, tokens)):
        theirs = EncoderRepetitionPenaltyLogitsProcessor(penalty, expected)
        assert_same_at_every_step(
            theirs, dk.EncoderRepetitionPenalty(penalty, source=given_ids), call, seed, steps=3
        )


@LAWS
@given(calls(), st.floats(0.01, 100.0), st.integers(1, 3))
def test_encoder_repetition_penalty_with_several_rows_a_prompt_is_hugging_faces(
    call: Call, penalty: float, beams: int
) -> None:
    tokens, scores = call
    source, scores = tokens.flip(1), scores.repeat_interleave(beams, 0).flip(0)
    history = history_of(tokens.tolist(), rows_per_prompt=beams)
    theirs = EncoderRepetitionPenaltyLogitsProcessor(penalty, source)
    ours = dk.EncoderRepetitionPenalty(penalty, source=source)
    assert theirs(history.tokens, scores.clone()).tolist() == step_scores(ours, history, scores, [])[0]
