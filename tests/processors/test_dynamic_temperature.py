import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.parity import LAWS
from tests.processors.reference import BANNED, CASES, NO_TEXT, probabilities


def share_of(scores: list[float]) -> float:
    """The entropy over its maximum."""
    allowed = sum(score > BANNED for score in scores)
    entropy = -math.fsum(prob * math.log(prob) for prob in probabilities(scores) if prob > 0)
    return min(entropy / math.log(allowed), 1.0) if allowed > 1 else 0.0


def temperature(processor: dk.DynamicTemperature, scores: list[float]) -> float:
    """The divisor of the first score."""
    return scores[0] / processor(NO_TEXT, torch.tensor([scores]))[0, 0].item()


def test_dynamic_temperature_is_high_where_all_tokens_are_equally_likely() -> None:
    assert temperature(dk.DynamicTemperature(0.5, 2.0), [6.0, 6.0, 6.0, 6.0]) == 2.0


def test_dynamic_temperature_is_low_where_one_token_is_certain() -> None:
    assert temperature(dk.DynamicTemperature(0.5, 2.0), [200.0, 0.0, 0.0]) == 0.5


def test_dynamic_temperature_counts_allowed_tokens_only() -> None:
    assert temperature(dk.DynamicTemperature(0.5, 2.0), [6.0, 6.0, BANNED, BANNED]) == 2.0
    assert temperature(dk.DynamicTemperature(0.5, 2.0), [6.0, BANNED, BANNED]) == 0.5


def test_dynamic_temperature_raises_the_share_of_the_entropy_to_the_exponent() -> None:
    # 1/2, 1/4, 1/8 and 1/8 have 1.75 of at most 2 bits: a share of 7/8.
    scores = [score * math.log(2) for score in (3.0, 2.0, 1.0, 1.0)]
    assert temperature(dk.DynamicTemperature(1, 2), scores) == pytest.approx(1 + 7 / 8, rel=1e-6)
    assert temperature(dk.DynamicTemperature(1, 2, 2), scores) == pytest.approx(1 + 49 / 64, rel=1e-6)


def test_dynamic_temperature_leaves_a_row_without_tokens_as_it_is() -> None:
    scores = torch.full((1, 3), BANNED)
    assert scores.tolist() == dk.DynamicTemperature(0.5, 2)(NO_TEXT, scores).tolist()


def test_dynamic_temperature_takes_one_number_per_prompt() -> None:
    out = dk.DynamicTemperature([0.5, 1.0], [2.0, 3.0], 2)(NO_TEXT.expand(2, -1), torch.full((2, 4), 6.0))
    assert out.tolist() == [[3.0] * 4, [2.0] * 4]


@LAWS
@given(CASES, st.floats(0.05, 3))
def test_dynamic_temperature_with_equal_ends_is_temperature(
    case: tuple[dk.History, torch.Tensor], both: float
) -> None:
    history, scores = case
    fixed = dk.Temperature(both).process(history, scores)
    # Temperature divides by a Python number, which torch rounds to float32 only after the division.
    torch.testing.assert_close(
        fixed, dk.DynamicTemperature(both, both).process(history, scores), rtol=1e-6, atol=0
    )


@LAWS
@given(CASES, st.floats(0.1, 1), st.floats(1, 4), st.floats(0.2, 3))
def test_dynamic_temperature_is_the_slow_reference(
    case: tuple[dk.History, torch.Tensor], low: float, high: float, exponent: float
) -> None:
    history, scores = case
    out = dk.DynamicTemperature(low, high, exponent).process(history, scores)
    for row, made in zip(scores.tolist(), out.tolist(), strict=True):
        share = share_of(row)
        # The entropy is a sum in float32, good to 1e-7: a smaller one is inaccurate.
        if share > 1e-4 or share == 0:
            expected = low + (high - low) * share**exponent
            assert made == pytest.approx([score / expected for score in row], rel=1e-3)


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, "1", None, True, [1.0, 0.0]])
@pytest.mark.parametrize("name", ["low", "high", "exponent"])
def test_dynamic_temperature_refuses_what_is_not_a_finite_number_above_zero(name: str, value: Any) -> None:  # noqa: ANN401
    message = rf"^DynamicTemperature: {name} must be a finite number above 0, got"
    with pytest.raises(ValueError, match=message):
        dk.DynamicTemperature(**{"low": 1, "high": 1, name: value})


@pytest.mark.parametrize(
    ("low", "high"), [(2, 1), ([1, 3], 2), (2, [3, 1]), ([1.0, 2.0], [1.0, 1.5]), ([2, 1], torch.ones(2))]
)
def test_dynamic_temperature_refuses_a_low_above_the_high(low: Any, high: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^DynamicTemperature: low must be at most high, got"):
        dk.DynamicTemperature(low, high)


@pytest.mark.parametrize(
    "processor",
    [
        dk.DynamicTemperature(0.5, 2),
        dk.DynamicTemperature(1, 1, 0.5),
        lambda prompts: dk.DynamicTemperature([0.5 + i for i in prompts], 9, [1 + i for i in prompts]),
    ],
)
def test_dynamic_temperature_keeps_the_contract_of_processors(processor: Any) -> None:  # noqa: ANN401
    check_processor(processor, max_examples=15)
