import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

import decodekit as dk
from decodekit.testing import check_processor
from decodekit.testing.strategies import cases
from tests.processors.alone import FEW, Values, assert_each_has_its_own, batches
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
def test_repetition_penalty_refuses_all_but_finite_numbers_above_zero(penalty: float) -> None:
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
    # The argument of generate: the number of padding columns of each row.
    padding = (~history.valid[:, :length]).sum(-1)
    theirs = RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=padding)
    expected = theirs(history.tokens[:, :length].clone(), scores.clone())
    assert expected.tolist() == dk.RepetitionPenalty(penalty).process(history, scores).tolist()


def test_repetition_penalty_for_each_prompt_keeps_the_contract_of_processors() -> None:
    check_processor(
        lambda numbers: dk.RepetitionPenalty(
            [0.5 + number for number in numbers], prompt_ignore_length=numbers
        ),
        max_examples=20,
    )


@FEW
@given(batches(st.sampled_from([0.5, 1, 2]) | st.floats(0.01, 100.0)), st.integers(0, 2**31))
def test_repetition_penalty_of_every_prompt_is_the_same_alone(
    case: tuple[list[list[int]], Values], seed: int
) -> None:
    batch, values = case
    assert_each_has_its_own(dk.RepetitionPenalty, batch, values, seed)


def test_repetition_penalty_for_each_prompt_refuses_all_but_finite_numbers_above_zero() -> None:
    with pytest.raises(
        ValueError, match=r"^RepetitionPenalty: penalty must be a finite number above 0, got 0"
    ):
        dk.RepetitionPenalty([1.2, 0])


def test_repetition_penalty_ignores_as_many_first_tokens_of_each_prompt_as_given() -> None:
    history = dk.Prompt.from_ids([[0, 1, 2], [1, 2], [3]]).history(4, 1).append(torch.tensor([1, 3, 3]))
    processor = dk.RepetitionPenalty(2.0, prompt_ignore_length=[3, 1, 1])
    out = processor.process(history, torch.ones(3, 4))
    assert out.tolist() == [[1.0, 0.5, 1.0, 1.0], [1.0, 1.0, 0.5, 0.5], [1.0, 1.0, 1.0, 0.5]]


def test_repetition_penalty_that_ignores_each_prompts_length_is_a_run_without_prompt() -> None:
    batch = [[0, 1, 2, 2], [1], [3, 4]]
    history, nothing = (dk.Prompt.from_ids(ids).history(9, 1) for ids in (batch, [[6], [6], [6]]))
    scores = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    processor = dk.RepetitionPenalty(1.7, prompt_ignore_length=[4, 1, 2])
    for tokens in ([0, 0, 3], [2, 5, 3], [4, 1, 0]):
        history, nothing = (text.append(torch.tensor(tokens)) for text in (history, nothing))
        expected = dk.RepetitionPenalty(1.7, prompt_ignore_length=1).process(nothing, scores)
        assert expected.tolist() == processor.process(history, scores).tolist()


@pytest.mark.parametrize("length", [-1, 1.0, True, "3", None, [2, -1]])
def test_repetition_penalty_refuses_a_length_that_is_not_an_integer_of_at_least_zero(length: Any) -> None:  # noqa: ANN401
    message = r"^RepetitionPenalty: prompt_ignore_length must be an integer of at least 0, got"
    with pytest.raises(ValueError, match=message):
        dk.RepetitionPenalty(1.2, prompt_ignore_length=length)


@LAWS
@given(calls(outside=3), st.floats(0.01, 100.0), st.integers(0, 10))
def test_repetition_penalty_that_ignores_some_tokens_is_hugging_faces(
    call: Call, penalty: float, length: int
) -> None:
    theirs = RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=length)
    assert_same(theirs, dk.RepetitionPenalty(penalty, prompt_ignore_length=length), call)


@LAWS
@given(
    st.integers(2, 9).flatmap(cases),
    st.floats(0.01, 100.0),
    st.lists(st.integers(0, 9), min_size=4, max_size=4),
)
def test_repetition_penalty_that_ignores_some_tokens_of_each_prompt_is_hugging_faces(
    case: tuple[dk.History, Tensor], penalty: float, lengths: list[int]
) -> None:
    history, scores = case
    rows, length = len(scores), int(history.position)
    # Hugging Face counts columns: the padding first.
    ignored = (~history.valid[:, :length]).sum(-1) + torch.tensor(lengths[:rows])
    theirs = RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=ignored)
    expected = theirs(history.tokens[:, :length].clone(), scores.clone())
    ours = dk.RepetitionPenalty(penalty, prompt_ignore_length=lengths[:rows])
    assert expected.tolist() == ours.process(history, scores).tolist()
