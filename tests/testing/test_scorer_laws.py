"""Scorers that are broken in one way each, and the law that says so."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import decodekit as dk
from decodekit.testing import check_scorer

pytestmark = pytest.mark.usefixtures("first_failure")


@dataclass(frozen=True)
class BoundTooLow(dk.Scorer):
    """Broken: its bound assumes that further tokens have a cost."""

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        return dk.LengthPenalty(1.0)(log_probs, lengths)

    def bound(self, log_probs: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        return dk.LengthPenalty(1.0).bound(log_probs - 1.0, lengths, max_length // 2)


@dataclass(frozen=True)
class BoundOfTheWholeBatch(BoundTooLow):
    """Broken: a bound that holds, but is the largest of all hypotheses."""

    def bound(self, log_probs: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        return dk.LengthPenalty(1.0).bound(log_probs, lengths, max_length).amax().expand_as(log_probs)


@dataclass(frozen=True)
class NoBound(BoundTooLow):
    """Right: infinity is a bound."""

    def bound(self, log_probs: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        del lengths, max_length
        return torch.full_like(log_probs, torch.inf)


@dataclass(frozen=True)
class BoundFalls(dk.Scorer):
    """Broken: a bound that holds, but is lower for a greater sum."""

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        del lengths
        return log_probs

    def bound(self, log_probs: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        del lengths, max_length
        return -log_probs


def test_a_scorer_whose_bound_falls_as_the_sum_rises_is_caught() -> None:
    with pytest.raises(
        AssertionError, match=r"BoundFalls.* must have a bound that does not fall as the sum rises: bound \["
    ):
        check_scorer(BoundFalls())


def test_a_scorer_without_a_bound_passes() -> None:
    check_scorer(NoBound())


def test_a_scorer_with_a_bound_that_is_too_low_is_caught() -> None:
    with pytest.raises(
        AssertionError, match=r"BoundTooLow.* must not be below the score of a continuation: bo"
    ):
        check_scorer(BoundTooLow())


def test_a_scorer_with_a_bound_that_is_not_elementwise_is_caught() -> None:
    with pytest.raises(
        AssertionError, match=r"BoundOfTheWholeBatch.* must be elementwise in its bound: together"
    ):
        check_scorer(BoundOfTheWholeBatch())
