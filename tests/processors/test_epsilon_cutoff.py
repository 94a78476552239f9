import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import EpsilonLogitsWarper

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.alone import FEW, Values, assert_each_has_its_own, batches
from tests.processors.parity import LAWS, Call, assert_same, calls

VALUES = st.sampled_from([0.125, 0.25, 0.5]) | st.floats(0.0, 1.0, exclude_min=True, exclude_max=True)
COUNTS = st.just(1) | st.integers(1, 12)
NO_TEXT = torch.tensor([[0]])
BANNED = -torch.inf
# Powers of two, so that probabilities and their sums are exact: 1/8, 1/2, 1/8, 1/4.
EIGHTHS = torch.tensor([[0.0, 2.0, 0.0, 1.0]]) * math.log(2)


def kept(epsilon: float, scores: torch.Tensor, **options: int) -> list[int]:
    """The ids that survive."""
    return torch.where(dk.EpsilonCutoff(epsilon, **options)(NO_TEXT, scores)[0] > BANNED)[0].tolist()


def test_epsilon_cutoff_bans_what_is_less_likely_than_epsilon() -> None:
    assert kept(0.1, EIGHTHS) == [0, 1, 2, 3]
    assert kept(0.2, EIGHTHS) == [1, 3]
    assert kept(0.3, EIGHTHS) == [1]


def test_epsilon_cutoff_keeps_a_token_of_exactly_probability_epsilon() -> None:
    assert kept(0.25, EIGHTHS) == [1, 3]
    assert kept(0.125, EIGHTHS) == [0, 1, 2, 3]


def test_epsilon_cutoff_keeps_the_likeliest_and_all_that_are_tied_with_it_whatever_their_probability() -> (
    None
):
    assert kept(0.9, EIGHTHS) == [1]
    assert kept(0.9, torch.tensor([[2.0, 0.0, 2.0]])) == [0, 2]


def test_epsilon_cutoff_keeps_min_tokens_to_keep_whatever_epsilon_says() -> None:
    assert kept(0.9, EIGHTHS, min_tokens_to_keep=2) == [1, 3]
    assert kept(0.9, EIGHTHS, min_tokens_to_keep=3) == [0, 1, 2, 3]  # two are tied
    assert kept(0.9, EIGHTHS, min_tokens_to_keep=9) == [0, 1, 2, 3]


def test_epsilon_cutoff_leaves_the_scores_of_kept_tokens_as_they_are() -> None:
    out = dk.EpsilonCutoff(0.2)(NO_TEXT, EIGHTHS)
    assert [[BANNED, EIGHTHS[0, 1].item(), BANNED, EIGHTHS[0, 3].item()]] == out.tolist()


def test_epsilon_cutoff_allows_nothing_that_was_banned() -> None:
    assert kept(0.5, torch.tensor([[0.0, BANNED, BANNED]]), min_tokens_to_keep=2) == [0]


@pytest.mark.parametrize("epsilon", [0, 1, 0.0, 1.0, -0.1, 2, math.inf, -math.inf, math.nan, True, "a", None])
def test_epsilon_cutoff_refuses_what_is_not_between_zero_and_one(
    epsilon: Any,  # noqa: ANN401
) -> None:
    with pytest.raises(ValueError, match=r"^EpsilonCutoff: epsilon must be strictly between 0 and 1, got"):
        dk.EpsilonCutoff(epsilon)


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "3", None])
def test_epsilon_cutoff_refuses_to_keep_less_than_one_token(count: Any) -> None:  # noqa: ANN401
    message = r"^EpsilonCutoff: min_tokens_to_keep must be an integer of at least 1, got"
    with pytest.raises(ValueError, match=message):
        dk.EpsilonCutoff(0.5, min_tokens_to_keep=count)


@pytest.mark.parametrize(
    "processor",
    [
        dk.EpsilonCutoff(0.01),
        dk.EpsilonCutoff(0.2),
        dk.EpsilonCutoff(0.9, min_tokens_to_keep=3),
        lambda numbers: dk.EpsilonCutoff([0.15 + 0.2 * number for number in numbers]),
    ],
)
def test_epsilon_cutoff_keeps_the_contract_of_processors(processor: Any) -> None:  # noqa: ANN401
    check_processor(processor, max_examples=20)


@LAWS
@given(calls(), VALUES, COUNTS)
def test_epsilon_cutoff_is_hugging_faces(call: Call, epsilon: float, count: int) -> None:
    theirs = EpsilonLogitsWarper(epsilon, min_tokens_to_keep=count)
    assert_same(theirs, dk.EpsilonCutoff(epsilon, min_tokens_to_keep=count), call)


@FEW
@given(batches(VALUES), st.integers(0, 2**31))
def test_epsilon_cutoff_of_every_prompt_is_what_it_is_alone(
    case: tuple[list[list[int]], Values], seed: int
) -> None:
    batch, values = case
    assert_each_has_its_own(dk.EpsilonCutoff, batch, values, seed)
