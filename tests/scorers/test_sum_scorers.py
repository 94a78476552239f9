"""Scorers of sum and length: solved by hand, and their laws."""

import math

import pytest
import torch

import decodekit as dk
from decodekit.testing import check_scorer

SUMS, LENGTHS = torch.tensor([-4.0, -9.0]), torch.tensor([1, 7])


def test_the_penalty_of_gnmt_divides_by_a_power_of_five_and_the_length_over_six() -> None:
    assert dk.GNMTLengthPenalty(0.0)(SUMS, LENGTHS).tolist() == [-4.0, -9.0]
    assert dk.GNMTLengthPenalty(1.0)(SUMS, LENGTHS).tolist() == [-4.0, -4.5]
    assert dk.GNMTLengthPenalty(2.0)(SUMS, LENGTHS).tolist() == [-4.0, -2.25]


def test_the_word_reward_is_added_for_every_token() -> None:
    assert dk.WordReward(0.5)(SUMS, LENGTHS).tolist() == [-3.5, -5.5]
    assert dk.WordReward(-1.0)(SUMS, LENGTHS).tolist() == [-5.0, -16.0]
    assert dk.WordReward(1.0, base=dk.GNMTLengthPenalty(1.0))(SUMS, LENGTHS).tolist() == [-3.0, 2.5]


def test_bounds_are_reached_at_the_best_length() -> None:
    assert dk.WordReward(0.5).bound(SUMS, LENGTHS, 10).tolist() == [1.0, -4.0]
    assert dk.WordReward(-0.5).bound(SUMS, LENGTHS, 10).tolist() == [-4.5, -12.5]
    assert dk.GNMTLengthPenalty(1.0).bound(SUMS, LENGTHS, 13).tolist() == pytest.approx([-4 / 3, -3.0])
    assert dk.GNMTLengthPenalty(-1.0).bound(SUMS, LENGTHS, 13).tolist() == [-4.0, -18.0]


def test_a_function_ranks_and_is_never_proved_without_a_bound() -> None:
    longest = dk.ScoreFunction(lambda log_probs, lengths: log_probs + 100 * lengths)
    model = dk.testing.HashModel(5, 1, end_ids=(2,))
    out = dk.decode(model, [[1]], dk.BeamSearch(3, scorer=longest, stop_rule=dk.Proved()), max_new_tokens=6)
    assert out.lengths.tolist() == [[6]]
    assert out.report.bound.tolist() == [math.inf]  # type: ignore[attr-defined]
    check_scorer(longest)
    known = dk.ScoreFunction(
        longest.function, lambda log_probs, lengths, most: log_probs + 100 * most + 0 * lengths
    )
    check_scorer(known)
    assert known.bound(SUMS, LENGTHS, 9).tolist() == [896.0, 891.0]


def test_a_function_that_returns_something_else_is_refused() -> None:
    for wrong in (lambda log_probs, lengths: 3.0, lambda log_probs, lengths: log_probs.sum()):  # noqa: ARG005
        with pytest.raises(dk.DecodekitError, match="function must return a tensor of the shape"):
            dk.ScoreFunction(wrong)(SUMS, LENGTHS)  # type: ignore[arg-type]
    with pytest.raises(dk.DecodekitError, match="upper must return a tensor of the shape"):
        dk.ScoreFunction(torch.add, lambda log_probs, lengths, most: log_probs[:1]).bound(SUMS, LENGTHS, 9)  # noqa: ARG005
    with pytest.raises(TypeError, match="function and upper must be callable, got 3"):
        dk.ScoreFunction(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [math.inf, math.nan, "1", None])
def test_numbers_must_be_finite(number: object) -> None:
    with pytest.raises(ValueError, match="GNMTLengthPenalty: alpha must be a finite number"):
        dk.GNMTLengthPenalty(number)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="WordReward: reward must be a finite number"):
        dk.WordReward(number)  # type: ignore[arg-type]


def test_a_word_reward_needs_a_base_of_sum_and_length() -> None:
    with pytest.raises(TypeError, match="WordReward: base must be a Scorer"):
        dk.WordReward(1.0, base=dk.UIDVariance(1.0))  # type: ignore[arg-type]
