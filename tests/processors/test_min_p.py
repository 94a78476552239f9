import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MinPLogitsWarper

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.alone import FEW, Values, assert_each_has_its_own, batches
from tests.processors.parity import LAWS, Call, assert_same, calls

COUNTS = st.just(1) | st.integers(1, 12)
NO_TEXT = torch.tensor([[0]])
BANNED = -torch.inf
# Powers of two, so that probabilities are exact: 1/8, 1/2, 1/8, 1/4.
EIGHTHS = torch.tensor([[0.0, 2.0, 0.0, 1.0]]) * math.log(2)


def kept(p: float, scores: torch.Tensor, **options: int) -> list[int]:
    """The ids that survive."""
    return torch.where(dk.MinP(p, **options)(NO_TEXT, scores)[0] > BANNED)[0].tolist()


def test_min_p_bans_what_is_less_than_p_times_as_likely_as_the_likeliest() -> None:
    assert kept(0.2, EIGHTHS) == [0, 1, 2, 3]
    assert kept(0.3, EIGHTHS) == [1, 3]
    assert kept(0.6, EIGHTHS) == [1]


def test_min_p_one_keeps_all_that_are_tied_for_the_likeliest() -> None:
    assert kept(1.0, torch.tensor([[2.0, 0.0, 2.0]])) == [0, 2]


def test_min_p_keeps_a_token_that_is_exactly_p_times_as_likely() -> None:
    assert kept(0.5, torch.tensor([[0.5, 0.25, 0.25]]).log()) == [0, 1, 2]


def test_min_p_leaves_the_scores_of_kept_tokens_as_they_are() -> None:
    out = dk.MinP(0.3)(NO_TEXT, EIGHTHS)
    assert [[BANNED, EIGHTHS[0, 1].item(), BANNED, EIGHTHS[0, 3].item()]] == out.tolist()


def test_min_p_keeps_min_tokens_to_keep_whatever_p_says() -> None:
    assert kept(1.0, EIGHTHS, min_tokens_to_keep=2) == [1, 3]
    assert kept(1.0, EIGHTHS, min_tokens_to_keep=9) == [0, 1, 2, 3]


def test_min_p_allows_nothing_that_was_banned() -> None:
    assert kept(0.001, torch.tensor([[0.0, BANNED, 0.0]])) == [0, 2]
    assert kept(0.001, torch.tensor([[0.0, BANNED, BANNED]]), min_tokens_to_keep=2) == [0]


@pytest.mark.parametrize("p", [0, 0.0, -0.1, 1.1, 2, math.inf, -math.inf, math.nan])
def test_min_p_refuses_a_p_that_is_no_fraction_of_the_largest(p: float) -> None:
    with pytest.raises(ValueError, match=r"^MinP: p must be in \(0, 1\], got"):
        dk.MinP(p)


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "3", None])
def test_min_p_refuses_to_keep_less_than_one_token(count: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^MinP: min_tokens_to_keep must be an integer of at least 1, got"):
        dk.MinP(0.1, min_tokens_to_keep=count)


@pytest.mark.parametrize(
    "processor", [dk.MinP(0.01), dk.MinP(0.5), dk.MinP(1), dk.MinP(0.9, min_tokens_to_keep=3)]
)
def test_min_p_keeps_the_contract_of_processors(processor: dk.MinP) -> None:
    check_processor(processor, max_examples=20)


@LAWS
@given(calls(), st.sampled_from([0.25, 0.5, 1.0]) | st.floats(0.0, 1.0, exclude_min=True), COUNTS)
def test_min_p_is_hugging_faces(call: Call, p: float, count: int) -> None:
    assert_same(MinPLogitsWarper(p, min_tokens_to_keep=count), dk.MinP(p, min_tokens_to_keep=count), call)


def test_min_p_per_prompt_keeps_the_contract_of_processors() -> None:
    check_processor(lambda numbers: dk.MinP([0.1 + 0.3 * number for number in numbers]), max_examples=20)


@FEW
@given(
    batches(st.sampled_from([0.25, 0.5, 1.0]) | st.floats(0.0, 1.0, exclude_min=True)), st.integers(0, 2**31)
)
def test_min_p_of_every_prompt_is_what_it_is_alone(case: tuple[list[list[int]], Values], seed: int) -> None:
    batch, values = case
    assert_each_has_its_own(dk.MinP, batch, values, seed)


def test_min_p_per_prompt_refuses_a_p_that_is_no_fraction_of_the_largest() -> None:
    with pytest.raises(ValueError, match=r"^MinP: p must be in \(0, 1\], got 0"):
        dk.MinP([0.5, 0])
