import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import decodekit as dk
from decodekit.testing import check_scorer

LAWS = settings(max_examples=300, deadline=None, derandomize=True, database=None)
LOG_PROBS = st.floats(-1e3, 0.0, width=32)
ALPHAS = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]) | st.floats(-3.0, 3.0)
EVERY_KIND = [-2.0, -0.5, 0.0, 0.3, 1.0, 2.0, 1, -1]


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(0.0, [-4.0, -9.0]), (1.0, [-1.0, -1.0]), (0.5, [-2.0, -3.0]), (-1.0, [-16.0, -81.0])],
)
def test_length_penalty_divides_by_the_lengths_power(alpha: float, expected: list[float]) -> None:
    assert dk.LengthPenalty(alpha)(torch.tensor([-4.0, -9.0]), torch.tensor([4, 9])).tolist() == expected


def test_length_penalty_is_the_mean_per_token_by_default() -> None:
    assert dk.LengthPenalty()(torch.tensor([-6.0]), torch.tensor([4])).tolist() == [-1.5]


def test_length_penalty_of_zero_is_the_log_probability() -> None:
    log_probs, lengths = torch.tensor([-0.1, -3.3]), torch.tensor([1, 7])
    assert dk.LogProb()(log_probs, lengths).tolist() == dk.LengthPenalty(0)(log_probs, lengths).tolist()


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (1.0, -0.5),  # the longest text: -8 / 16
        (0.5, -2.0),  # -8 / 4
        (0.0, -8.0),  # at any length
        (-1.0, -32.0),  # the shortest text, as it is now: -8 * 4
    ],
)
def test_length_penalty_is_bounded_at_the_best_length(alpha: float, expected: float) -> None:
    bound = dk.LengthPenalty(alpha).bound(torch.tensor([-8.0]), torch.tensor([4]), 16)
    assert bound.tolist() == [expected]


def test_length_penalty_takes_any_shape() -> None:
    log_probs, lengths = -torch.arange(6.0).view(1, 2, 3), torch.arange(1, 7).view(1, 2, 3)
    assert dk.LengthPenalty(0.7)(log_probs, lengths).shape == (1, 2, 3)
    assert dk.LengthPenalty(0.7).bound(log_probs, lengths, 9).shape == (1, 2, 3)


@pytest.mark.parametrize("alpha", [-2.0, 0.0, 1.0])
def test_length_penalty_keeps_minus_infinity(alpha: float) -> None:
    empty_scores, length = torch.tensor([-torch.inf]), torch.tensor([3])
    assert dk.LengthPenalty(alpha)(empty_scores, length).tolist() == [-torch.inf]
    assert dk.LengthPenalty(alpha).bound(empty_scores, length, 9).tolist() == [-torch.inf]


@pytest.mark.parametrize("alpha", [math.inf, -math.inf, math.nan])
def test_length_penalty_refuses_a_power_that_is_not_finite(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"^LengthPenalty: alpha must be a finite number, got"):
        dk.LengthPenalty(alpha)


@pytest.mark.parametrize("alpha", EVERY_KIND)
def test_length_penalty_keeps_the_contract_of_scorers(alpha: float) -> None:
    check_scorer(dk.LengthPenalty(alpha), max_examples=60)


@LAWS
@given(ALPHAS, LOG_PROBS, LOG_PROBS, st.integers(1, 50), st.integers(0, 50))
def test_length_penalty_bound_is_not_below_any_continuation(
    alpha: float, so_far: float, added: float, length: int, longer: int
) -> None:
    scorer, log_probs = dk.LengthPenalty(alpha), torch.tensor([so_far])
    bound = scorer.bound(log_probs, torch.tensor([length]), 100)
    continued = scorer(log_probs + added, torch.tensor([length + longer]))
    assert bound >= continued


@pytest.mark.parametrize("alpha", EVERY_KIND)
def test_length_penalty_bound_is_tight(alpha: float) -> None:
    scorer, log_probs, now, most = dk.LengthPenalty(alpha), torch.tensor([-8.0]), torch.tensor([4]), 16
    reached = max(scorer(log_probs, torch.tensor([length])).item() for length in range(4, most + 1))
    assert scorer.bound(log_probs, now, most).item() == reached


@LAWS
@given(ALPHAS, st.lists(LOG_PROBS, min_size=1, max_size=5), st.integers(1, 1000))
def test_length_penalty_is_hugging_faces_formula(alpha: float, sums: list[float], length: int) -> None:
    log_probs = torch.tensor(sums)
    # _update_finished_beams, transformers 5.23: a tensor over a Python number.
    expected = log_probs / (length**alpha)
    lengths = torch.full_like(log_probs, length, dtype=torch.long)
    assert expected.tolist() == dk.LengthPenalty(alpha)(log_probs, lengths).tolist()


@LAWS
@given(ALPHAS, LOG_PROBS, st.integers(1, 50), st.integers(0, 50))
def test_length_penalty_bound_is_hugging_faces_best_possible_score(
    alpha: float, log_prob: float, length: int, longer: int
) -> None:
    most = length + longer
    # _check_early_stop_heuristic, transformers 5.23, with early_stopping="never".
    best_length = most if alpha > 0.0 else length
    expected = torch.tensor([log_prob]) / (best_length**alpha)
    bound = dk.LengthPenalty(alpha).bound(torch.tensor([log_prob]), torch.tensor([length]), most)
    assert expected.tolist() == bound.tolist()


@dataclass(frozen=True)
class AlwaysTheLongest(dk.Scorer):
    """Broken: for a negative power the shortest text is the kindest, not the longest."""

    alpha: float

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        return dk.LengthPenalty(self.alpha)(log_probs, lengths)

    def bound(self, log_probs: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        return self(log_probs, torch.full_like(lengths, max_length))


@dataclass(frozen=True)
class AlwaysThePresent(AlwaysTheLongest):
    """Broken: for a positive power a longer text is the kinder."""

    def bound(self, log_probs: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        del max_length
        return self(log_probs, lengths)


@dataclass(frozen=True)
class OneShort(AlwaysTheLongest):
    """Broken: the longest text is one token longer than this thinks."""

    def bound(self, log_probs: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        return self(log_probs, torch.full_like(lengths, max_length - 1))


@dataclass(frozen=True)
class CountsOneMore(AlwaysTheLongest):
    """Broken: a text counts one token more when it is scored than when it is bounded."""

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        return dk.LengthPenalty(self.alpha)(log_probs, lengths + 1)

    def bound(self, log_probs: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        return dk.LengthPenalty(self.alpha).bound(log_probs, lengths, max_length)


@dataclass(frozen=True)
class RelativeToTheBest(AlwaysTheLongest):
    """Broken: the score of a hypothesis depends on the other hypotheses."""

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        scores = dk.LengthPenalty(self.alpha)(log_probs, lengths)
        return scores - scores.amax()


@pytest.mark.parametrize(
    "nonfinite",
    [
        AlwaysTheLongest(-1.0),
        AlwaysThePresent(1.0),
        OneShort(1.0),
        CountsOneMore(1.0),
    ],
)
def test_check_scorer_catches_a_bound_that_is_too_low(nonfinite: dk.Scorer) -> None:
    with pytest.raises(AssertionError, match=r"bound must not be below the score of a continuation"):
        check_scorer(nonfinite)


def test_check_scorer_catches_a_scorer_that_is_not_elementwise() -> None:
    with pytest.raises(AssertionError, match="must be elementwise"):
        check_scorer(RelativeToTheBest(1.0))
