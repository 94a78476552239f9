import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TypicalLogitsWarper

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.alone import FEW, Values, assert_each_has_its_own, batches
from tests.processors.parity import LAWS, Call, assert_same, calls

VALUES = st.sampled_from([0.25, 0.5, 0.75]) | st.floats(0.0, 1.0, exclude_min=True, exclude_max=True)
COUNTS = st.just(1) | st.integers(1, 12)
NO_TEXT = torch.tensor([[0]])
BANNED = -torch.inf
# Powers of two, so that probabilities and their sums are exact: 1/8, 1/2, 1/8, 1/4.
EIGHTHS = torch.tensor([[0.0, 2.0, 0.0, 1.0]]) * math.log(2)


def kept(mass: float, scores: torch.Tensor, **options: int) -> list[int]:
    """The ids that survive."""
    return torch.where(dk.Typical(mass, **options)(NO_TEXT, scores)[0] > BANNED)[0].tolist()


# Of 1/8, 1/2, 1/8, 1/4 the entropy is 7/4 bits, and the surprisals are 3, 1, 3 and 2 bits: token 3 is
# 1/4 bit from it, token 1 3/4, tokens 0 and 2 5/4.
def test_typical_keeps_the_tokens_whose_surprisal_is_nearest_to_the_entropy() -> None:
    assert kept(0.2, EIGHTHS) == [3]
    assert kept(0.6, EIGHTHS) == [1, 3]
    assert kept(0.8, EIGHTHS) == [0, 1, 2, 3]  # two are as far


def test_typical_takes_no_more_once_it_has_exactly_the_mass() -> None:
    assert kept(0.25, EIGHTHS) == [3]
    assert kept(0.75, EIGHTHS) == [1, 3]


def test_typical_can_ban_the_likeliest_token() -> None:
    assert not dk.Typical(0.2).argmax_invariant
    assert 1 not in kept(0.2, EIGHTHS)


def test_typical_keeps_all_where_all_are_as_likely() -> None:
    assert kept(0.1, torch.zeros(1, 4)) == [0, 1, 2, 3]


def test_typical_keeps_min_tokens_to_keep_of_the_most_typical_for_any_mass() -> None:
    assert kept(0.01, EIGHTHS, min_tokens_to_keep=2) == [1, 3]
    assert kept(0.01, EIGHTHS, min_tokens_to_keep=9) == [0, 1, 2, 3]


def test_typical_leaves_the_scores_of_kept_tokens_as_they_are() -> None:
    out = dk.Typical(0.6)(NO_TEXT, EIGHTHS)
    assert [[BANNED, EIGHTHS[0, 1].item(), BANNED, EIGHTHS[0, 3].item()]] == out.tolist()


def test_typical_leaves_banned_tokens_banned() -> None:
    assert kept(0.99, torch.tensor([[0.0, BANNED, 0.0]]), min_tokens_to_keep=3) == [0, 2]
    assert kept(0.5, torch.tensor([[BANNED, 5.0, BANNED]])) == [1]


@pytest.mark.parametrize("mass", [0, 1, 0.0, 1.0, -0.1, 2, math.inf, -math.inf, math.nan, True, "a", None])
def test_typical_refuses_numbers_not_between_zero_and_one(
    mass: Any,  # noqa: ANN401
) -> None:
    with pytest.raises(ValueError, match=r"^Typical: mass must be strictly between 0 and 1, got"):
        dk.Typical(mass)


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "3", None])
def test_typical_refuses_to_keep_less_than_one_token(count: Any) -> None:  # noqa: ANN401
    message = r"^Typical: min_tokens_to_keep must be an integer of at least 1, got"
    with pytest.raises(ValueError, match=message):
        dk.Typical(0.5, min_tokens_to_keep=count)


@pytest.mark.parametrize(
    "processor",
    [
        dk.Typical(0.01),
        dk.Typical(0.5),
        dk.Typical(0.95),
        dk.Typical(0.1, min_tokens_to_keep=3),
        lambda numbers: dk.Typical([0.15 + 0.2 * number for number in numbers]),
    ],
)
def test_typical_keeps_the_contract_of_processors(processor: Any) -> None:  # noqa: ANN401
    check_processor(processor, max_examples=20)


@LAWS
@given(calls(), VALUES, COUNTS)
def test_typical_is_hugging_faces(call: Call, mass: float, count: int) -> None:
    theirs = TypicalLogitsWarper(mass, min_tokens_to_keep=count)
    assert_same(theirs, dk.Typical(mass, min_tokens_to_keep=count), call)


@FEW
@given(batches(VALUES), st.integers(0, 2**31))
def test_typical_of_every_prompt_is_the_same_alone(case: tuple[list[list[int]], Values], seed: int) -> None:
    batch, values = case
    assert_each_has_its_own(dk.Typical, batch, values, seed)
