import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.parity import LAWS
from tests.processors.reference import BANNED, CASES, NO_TEXT, assert_bans, kept


def reference(scores: list[float], n: float) -> list[float]:
    """The distance of every score below the threshold."""
    allowed = [score for score in scores if score > BANNED]
    mean = math.fsum(allowed) / len(allowed)
    sigma = math.sqrt(math.fsum((score - mean) ** 2 for score in allowed) / len(allowed))
    return [max(allowed) - n * sigma - score for score in scores]


def test_top_n_sigma_keeps_tokens_within_n_standard_deviations_of_the_best() -> None:
    # The mean is 2, and the standard deviation the root of 10 / 4: 1.58.
    assert kept(dk.TopNSigma(1.0), [4.0, 3.0, 1.0, 0.0]) == [0, 1]
    assert kept(dk.TopNSigma(2.0), [4.0, 3.0, 1.0, 0.0]) == [0, 1, 2]
    assert kept(dk.TopNSigma(0.5), [4.0, 3.0, 1.0, 0.0]) == [0]


def test_top_n_sigma_takes_the_population_standard_deviation_and_keeps_the_token_at_the_threshold() -> None:
    # It is 1/2; over the count less one it would be 0.71.
    assert kept(dk.TopNSigma(2), [1.0, 0.0]) == [0, 1]
    assert kept(dk.TopNSigma(1.9), [1.0, 0.0]) == [0]


def test_top_n_sigma_does_not_count_banned_tokens() -> None:
    assert kept(dk.TopNSigma(2), [1.0, BANNED, 0.0, BANNED]) == [0, 2]
    assert kept(dk.TopNSigma(1), [BANNED, 7.0]) == [1]


def test_top_n_sigma_keeps_all_of_tied_tokens() -> None:
    assert kept(dk.TopNSigma(0.1), [3.0, 3.0, 3.0]) == [0, 1, 2]


def test_top_n_sigma_leaves_a_row_without_tokens_as_it_is() -> None:
    scores = torch.full((1, 3), BANNED)
    assert scores.tolist() == dk.TopNSigma(1)(NO_TEXT, scores).tolist()


@LAWS
@given(CASES, st.floats(0.1, 3), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_top_n_sigma_keeps_the_same_set_at_every_temperature(
    case: tuple[dk.History, torch.Tensor], n: float, temperature: float
) -> None:
    history, scores = case  # powers of two, so that nothing rounds
    warm = dk.Temperature(temperature).process(history, scores)
    before, after = (dk.TopNSigma(n).process(history, given) > BANNED for given in (scores, warm))
    assert before.tolist() == after.tolist()


@LAWS
@given(CASES, st.floats(0.1, 3))
def test_top_n_sigma_is_the_slow_reference(case: tuple[dk.History, torch.Tensor], n: float) -> None:
    history, scores = case
    expected = [reference(row, n) for row in scores.tolist()]
    # Scores reach 40, and float32 has 7 digits.
    assert_bans(dk.TopNSigma(n).process(history, scores), scores, expected, near=1e-4)


@pytest.mark.parametrize("n", [0, 0.0, -1, math.inf, math.nan, "1", None, True, [1.0, 0.0]])
def test_top_n_sigma_refuses_all_but_finite_numbers_above_zero(n: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^TopNSigma: n must be a finite number above 0, got"):
        dk.TopNSigma(n)


@pytest.mark.parametrize(
    "processor",
    [dk.TopNSigma(0.3), dk.TopNSigma(2), lambda prompts: dk.TopNSigma([0.5 + 0.5 * i for i in prompts])],
)
def test_top_n_sigma_keeps_the_contract_of_processors(processor: Any) -> None:  # noqa: ANN401
    check_processor(processor, max_examples=15)
