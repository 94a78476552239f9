"""Penalties for tokens of earlier groups: every `Diversity`."""

import math
from typing import Any

import pytest
import torch

import decodekit as dk


def hypotheses(
    ids: list[list[int]], lengths: list[int], live: list[bool] | None = None
) -> dk.GroupHypotheses:
    exist = [length > 0 for length in lengths] if live is None else live
    return dk.GroupHypotheses(torch.tensor([ids]), torch.tensor([lengths]), torch.tensor([exist]))


GROUP = hypotheses([[1, 2, 0, 0], [3, 2, 0, 0]], [2, 2])


def test_hamming_counts_the_live_beams_that_have_just_emitted_a_token() -> None:
    earlier = hypotheses([[9, 9, 4, 0], [9, 9, 4, 0], [9, 9, 1, 0]], [3, 3, 3], [True, True, False])
    costs = dk.Hamming(0.5).penalties(GROUP, earlier, torch.tensor(2), 6)
    assert costs.tolist() == [[[0.0, 0.0, 0.0, 0.0, 1.0, 0.0]] * 2]


def test_n_grams_count_at_every_position_of_live_and_finished_hypotheses() -> None:
    # 1 2 4 occurs twice, once in a finished hypothesis; columns past the length do not count.
    earlier = hypotheses([[1, 2, 4, 0], [5, 1, 2, 4], [1, 2, 5, 3], [1, 2, 3, 0]], [3, 4, 2, 0])
    costs = dk.NGramDiversity(3, 0.5).penalties(GROUP, earlier, torch.tensor(2), 6)
    assert costs.tolist() == [[[0.0, 0.0, 0.0, 0.0, 1.0, 0.0], [0.0] * 6]]


def test_n_grams_of_one_token_count_at_every_position() -> None:
    costs = dk.NGramDiversity(1, 2.0).penalties(GROUP, hypotheses([[1, 1, 4, 0]], [3]), torch.tensor(2), 6)
    assert costs.tolist() == [[[0.0, 4.0, 0.0, 0.0, 2.0, 0.0]] * 2]


@pytest.mark.parametrize("n", [3, 4, 5])
def test_a_hypothesis_shorter_than_an_n_gram_completes_none(n: int) -> None:
    earlier = hypotheses([[1, 2, 4, 1]], [4])
    assert not dk.NGramDiversity(n, 1.0).penalties(GROUP, earlier, torch.tensor(1), 6).any()


@pytest.mark.parametrize("strength", [-0.1, math.inf, math.nan, "1", None, True])
def test_the_strength_must_be_a_finite_number_of_at_least_zero(strength: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^Hamming: strength must be a finite number of at least 0, got"):
        dk.Hamming(strength)
    with pytest.raises(ValueError, match=r"^NGramDiversity: strength must be a finite number of at least 0"):
        dk.NGramDiversity(2, strength)


@pytest.mark.parametrize("n", [0, -1, 2.0, True])
def test_n_must_be_an_integer_of_at_least_one(n: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^NGramDiversity: n must be an integer of at least 1, got"):
        dk.NGramDiversity(n, 1.0)
