"""Inclusion probabilities and importance-weighted estimates."""

import math

import pytest
import torch

import decodekit as dk

INF = math.inf
SAMPLE = dk.Inclusion(
    log_probs=torch.tensor([[0.5, 0.25, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64).log(),
    log_inclusion=torch.tensor([[0.8, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64).log(),
)


def test_weights_are_probabilities_over_inclusion_probabilities() -> None:
    expected = torch.tensor([[0.625, 0.5, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(SAMPLE.log_weights.exp(), expected)
    assert SAMPLE.log_weights[0, 2] == -INF
    torch.testing.assert_close(SAMPLE.probabilities[0], torch.tensor([0.8, 0.5, 0.0]).double())
    assert SAMPLE.threshold is None


def test_an_estimate_is_the_weighted_sum_and_a_normalised_one_the_weighted_mean() -> None:
    values = torch.tensor([[2.0, 4.0, math.nan], [3.0, -INF, INF]])  # values that are not valid are ignored
    torch.testing.assert_close(SAMPLE.estimate(values), torch.tensor([3.25, 3.0]).double())
    expected = torch.tensor([3.25 / 1.125, 3.0]).double()
    torch.testing.assert_close(SAMPLE.estimate(values, normalize=True), expected)


def test_values_may_be_integers() -> None:
    torch.testing.assert_close(
        SAMPLE.estimate(torch.tensor([[2, 4, 0], [3, 0, 0]])), torch.tensor([3.25, 3.0]).double()
    )


@pytest.mark.parametrize("shape", [(2,), (2, 2), (3, 2), (1, 3)])
def test_there_must_be_a_value_for_each_hypothesis(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Inclusion: there must be one value for each hypothesis"):
        SAMPLE.estimate(torch.zeros(shape))
