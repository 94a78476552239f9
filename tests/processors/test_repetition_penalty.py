import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

import decodekit as dk
from decodekit.testing import check_processor
from decodekit.testing.strategies import cases
from tests.processors.parity import LAWS, Call, assert_same, calls


def test_repetition_penalty_divides_positive_scores_and_multiplies_negative_ones() -> None:
    scores = torch.tensor([[3.0, -3.0, 3.0, -3.0]])
    assert dk.RepetitionPenalty(2.0)(torch.tensor([[0, 1]]), scores).tolist() == [[1.5, -6.0, 3.0, -3.0]]


def test_repetition_penalty_counts_a_token_once_however_often_it_occurs() -> None:
    scores = torch.tensor([[4.0, 4.0]])
    assert dk.RepetitionPenalty(2.0)(torch.tensor([[0, 0, 0]]), scores).tolist() == [[2.0, 4.0]]


def test_repetition_penalty_leaves_zero_and_infinities_as_they_are() -> None:
    scores = [[0.0, -torch.inf, torch.inf]]
    assert scores == dk.RepetitionPenalty(1.5)(torch.tensor([[0, 1, 2]]), torch.tensor(scores)).tolist()


def test_repetition_penalty_below_one_encourages_repetition() -> None:
    scores = torch.tensor([[2.0, -2.0]])
    assert dk.RepetitionPenalty(0.5)(torch.tensor([[0, 1]]), scores).tolist() == [[4.0, -1.0]]


def test_repetition_penalty_one_changes_nothing() -> None:
    scores = torch.tensor([[0.1, -0.7]])
    assert scores.tolist() == dk.RepetitionPenalty(1)(torch.tensor([[0, 1]]), scores).tolist()


def test_repetition_penalty_ignores_ids_outside_the_vocabulary() -> None:
    scores = torch.tensor([[1.0, 1.0]])
    assert dk.RepetitionPenalty(2.0)(torch.tensor([[2, 5, 1]]), scores).tolist() == [[1.0, 0.5]]


def test_repetition_penalty_does_not_count_padding() -> None:
    history = dk.History(
        torch.tensor([[0, 1, 3], [0, 1, 3]]),
        torch.tensor([[False, True, False], [True, True, False]]),
        torch.tensor(2),
    )
    out = dk.RepetitionPenalty(2.0).process(history, torch.ones(2, 4))
    assert out.tolist() == [[1.0, 0.5, 1.0, 1.0], [0.5, 0.5, 1.0, 1.0]]


@pytest.mark.parametrize("penalty", [0, 0.0, -1, -0.5, math.inf, -math.inf, math.nan])
def test_repetition_penalty_refuses_what_is_not_a_finite_number_above_zero(penalty: float) -> None:
    with pytest.raises(ValueError, match=r"^RepetitionPenalty: penalty must be a finite number above 0, got"):
        dk.RepetitionPenalty(penalty)


@pytest.mark.parametrize("penalty", [0.5, 1, 1.3])
def test_repetition_penalty_keeps_the_contract_of_processors(penalty: float) -> None:
    check_processor(dk.RepetitionPenalty(penalty), max_examples=20)


@LAWS
@given(calls(outside=3), st.floats(0.01, 100.0))
def test_repetition_penalty_is_hugging_faces(call: Call, penalty: float) -> None:
    assert_same(RepetitionPenaltyLogitsProcessor(penalty), dk.RepetitionPenalty(penalty), call)


@LAWS
@given(st.integers(2, 9).flatmap(cases), st.floats(0.01, 100.0))
def test_repetition_penalty_with_left_padding_is_hugging_faces_as_generate_calls_it(
    case: tuple[dk.History, Tensor], penalty: float
) -> None:
    history, scores = case
    length = int(history.position)
    # What generate passes: how many columns each row is padded by.
    padding = (~history.valid[:, :length]).sum(-1)
    theirs = RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=padding)
    expected = theirs(history.tokens[:, :length].clone(), scores.clone())
    assert expected.tolist() == dk.RepetitionPenalty(penalty).process(history, scores).tolist()
