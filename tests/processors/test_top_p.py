import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TopPLogitsWarper

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.alone import FEW, Values, assert_each_has_its_own, batches
from tests.processors.parity import LAWS, Call, assert_same, calls

COUNTS = st.just(1) | st.integers(1, 12)
NO_TEXT = torch.tensor([[0]])
BANNED = -torch.inf
# Powers of two, so that probabilities and their sums are exact: 1/8, 1/2, 1/8, 1/4.
EIGHTHS = torch.tensor([[0.0, 2.0, 0.0, 1.0]]) * math.log(2)


def kept(p: float, scores: torch.Tensor, **options: int) -> list[int]:
    """The ids that survive."""
    return torch.where(dk.TopP(p, **options)(NO_TEXT, scores)[0] > BANNED)[0].tolist()


def test_top_p_keeps_the_token_that_crosses_the_threshold() -> None:
    assert kept(0.6, EIGHTHS) == [1, 3]


def test_top_p_keeps_the_fewest_tokens_that_have_probability_p() -> None:
    assert kept(0.49, EIGHTHS) == [1]
    assert kept(0.74, EIGHTHS) == [1, 3]
    assert len(kept(0.8, EIGHTHS)) == 3  # one of the two tied ones
    assert kept(0.9, EIGHTHS) == [0, 1, 2, 3]


def test_top_p_keeps_no_more_once_it_has_exactly_probability_p() -> None:
    assert [len(kept(p, torch.zeros(1, 4))) for p in (0.25, 0.5, 0.75)] == [1, 2, 3]
    assert kept(0.5, EIGHTHS) == [1]


def test_top_p_zero_keeps_the_likeliest_token() -> None:
    assert kept(0.0, EIGHTHS) == [1]


def test_top_p_one_keeps_every_token() -> None:
    assert kept(1.0, EIGHTHS) == [0, 1, 2, 3]


def test_top_p_leaves_the_scores_of_kept_tokens_as_they_are() -> None:
    out = dk.TopP(0.6)(NO_TEXT, EIGHTHS)
    assert [[BANNED, EIGHTHS[0, 1].item(), BANNED, EIGHTHS[0, 3].item()]] == out.tolist()


def test_top_p_keeps_min_tokens_to_keep_for_any_p() -> None:
    assert kept(0.0, EIGHTHS, min_tokens_to_keep=2) == [1, 3]
    assert kept(0.0, EIGHTHS, min_tokens_to_keep=9) == [0, 1, 2, 3]


def test_top_p_leaves_banned_tokens_banned() -> None:
    assert kept(1.0, torch.tensor([[0.0, BANNED, 0.0]])) == [0, 2]
    assert kept(0.5, torch.tensor([[BANNED, 5.0, BANNED]])) == [1]


@pytest.mark.parametrize("p", [-0.1, 1.1, -1, 2, math.inf, -math.inf, math.nan])
def test_top_p_refuses_a_p_that_is_not_a_probability(p: float) -> None:
    with pytest.raises(ValueError, match=r"^TopP: p must be in \[0, 1\], got"):
        dk.TopP(p)


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "3", None])
def test_top_p_refuses_to_keep_less_than_one_token(count: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^TopP: min_tokens_to_keep must be an integer of at least 1, got"):
        dk.TopP(0.9, min_tokens_to_keep=count)


@pytest.mark.parametrize(
    "processor", [dk.TopP(0.0), dk.TopP(0.5), dk.TopP(0.9), dk.TopP(1), dk.TopP(0.1, min_tokens_to_keep=3)]
)
def test_top_p_keeps_the_contract_of_processors(processor: dk.TopP) -> None:
    check_processor(processor, max_examples=20)


@LAWS
@given(calls(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0.0, 1.0), COUNTS)
def test_top_p_is_hugging_faces(call: Call, p: float, count: int) -> None:
    assert_same(TopPLogitsWarper(p, min_tokens_to_keep=count), dk.TopP(p, min_tokens_to_keep=count), call)


def test_top_p_for_each_prompt_keeps_the_contract_of_processors() -> None:
    check_processor(lambda numbers: dk.TopP([0.3 * number for number in numbers]), max_examples=20)


@FEW
@given(batches(st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0.0, 1.0)), st.integers(0, 2**31))
def test_top_p_of_every_prompt_is_the_same_alone(case: tuple[list[list[int]], Values], seed: int) -> None:
    batch, values = case
    assert_each_has_its_own(dk.TopP, batch, values, seed)


def test_top_p_for_each_prompt_refuses_a_p_that_is_not_a_probability() -> None:
    with pytest.raises(ValueError, match=r"^TopP: p must be in \[0, 1\], got 1.5"):
        dk.TopP([0.5, 1.5])
