from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TopKLogitsWarper

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.alone import FEW, Values, assert_each_has_its_own, batches
from tests.processors.parity import LAWS, Call, assert_same, calls

NO_TEXT = torch.tensor([[0]])
BANNED = -torch.inf


def test_top_k_keeps_the_k_likeliest_as_they_are() -> None:
    scores = torch.tensor([[0.5, 3.0, -1.0, 2.0]])
    assert dk.TopK(2)(NO_TEXT, scores).tolist() == [[BANNED, 3.0, BANNED, 2.0]]


def test_top_k_keeps_all_that_are_tied_with_the_kth() -> None:
    scores = torch.tensor([[1.0, 2.0, 1.0, 0.0]])
    assert dk.TopK(2)(NO_TEXT, scores).tolist() == [[1.0, 2.0, 1.0, BANNED]]


def test_top_k_above_the_vocabulary_changes_nothing() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.0]])
    assert scores.tolist() == dk.TopK(4)(NO_TEXT, scores).tolist()


def test_top_k_leaves_banned_tokens_banned_when_fewer_than_k_are_left() -> None:
    scores = torch.tensor([[BANNED, 2.0, BANNED]])
    assert scores.tolist() == dk.TopK(2)(NO_TEXT, scores).tolist()


def test_top_k_keeps_min_tokens_to_keep_where_k_is_smaller() -> None:
    scores = torch.tensor([[0.5, 3.0, -1.0, 2.0]])
    kept = dk.TopK(1, min_tokens_to_keep=3)(NO_TEXT, scores)
    assert kept.tolist() == [[0.5, 3.0, BANNED, 2.0]]


def test_top_k_treats_every_row_by_itself() -> None:
    scores = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    kept = dk.TopK(1)(torch.tensor([[0], [0]]), scores)
    assert kept.tolist() == [[3.0, BANNED], [BANNED, 3.0]]


@pytest.mark.parametrize("k", [0, -1, 1.0, 2.5, True, "3", None])
def test_top_k_refuses_a_k_that_is_not_an_integer_of_at_least_one(k: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^TopK: k must be an integer of at least 1, got"):
        dk.TopK(k)


@pytest.mark.parametrize("kept", [0, -1, 1.0, True, "3", None])
def test_top_k_refuses_to_keep_less_than_one_token(kept: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^TopK: min_tokens_to_keep must be an integer of at least 1, got"):
        dk.TopK(3, min_tokens_to_keep=kept)


@pytest.mark.parametrize("processor", [dk.TopK(1), dk.TopK(3), dk.TopK(50), dk.TopK(1, min_tokens_to_keep=2)])
def test_top_k_keeps_the_contract_of_processors(processor: dk.TopK) -> None:
    check_processor(processor, max_examples=20)


@LAWS
@given(calls(), st.integers(1, 12), st.integers(1, 12))
def test_top_k_is_hugging_faces(call: Call, k: int, kept: int) -> None:
    theirs = TopKLogitsWarper(k, min_tokens_to_keep=kept)
    assert_same(theirs, dk.TopK(k, min_tokens_to_keep=kept), call)


def test_top_k_for_each_prompt_keeps_the_contract_of_processors() -> None:
    check_processor(lambda numbers: dk.TopK([1 + 3 * number for number in numbers]), max_examples=20)


@FEW
@given(batches(st.integers(1, 9)), st.integers(0, 2**31))
def test_top_k_of_every_prompt_is_the_same_alone(case: tuple[list[list[int]], Values], seed: int) -> None:
    batch, values = case
    assert_each_has_its_own(lambda k: dk.TopK(k, min_tokens_to_keep=2), batch, values, seed)


def test_top_k_for_each_prompt_refuses_a_k_that_is_not_an_integer_of_at_least_one() -> None:
    with pytest.raises(ValueError, match=r"^TopK: k must be an integer of at least 1, got 0"):
        dk.TopK([3, 0])


def test_top_k_for_each_prompt_is_one_number_for_all_rows_of_a_prompt_inside_hugging_face() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0]]).expand(4, 3)
    out = dk.TopK(torch.tensor([1, 2]))(torch.zeros(4, 1, dtype=torch.long), scores)
    one, two = [3.0, BANNED, BANNED], [3.0, 2.0, BANNED]
    assert out.tolist() == [one, one, two, two]
