import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.parity import LAWS
from tests.processors.reference import BANNED, CASES, NO_TEXT

SCORES = torch.tensor([[9.0, 8.0, 7.0, 5.0]])


def reference(scores: list[float], factor: float, curve: float) -> list[float]:
    """The formula, token by token."""
    top = max(scores)
    out = []
    for score in scores:
        below = score - top
        quadratic, cubic = (3 - curve) / 2, (curve - 1) / 2
        smoothed = -(quadratic * factor * below**2) + cubic * factor * below**3 + top
        out.append(BANNED if score == BANNED else smoothed)
    return out


def test_quadratic_smoothing_with_a_curve_of_one_is_a_parabola_below_the_best_score() -> None:
    assert dk.QuadraticSmoothing(0.5)(NO_TEXT, SCORES).tolist() == [[9.0, 8.5, 7.0, 1.0]]


def test_quadratic_smoothing_with_a_curve_of_three_is_a_cubic() -> None:
    assert dk.QuadraticSmoothing(0.5, 3)(NO_TEXT, SCORES).tolist() == [[9.0, 8.5, 5.0, -23.0]]


def test_quadratic_smoothing_with_a_curve_between_is_the_mean_of_both() -> None:
    assert dk.QuadraticSmoothing(0.5, 2)(NO_TEXT, SCORES).tolist() == [[9.0, 8.5, 6.0, -11.0]]


def test_quadratic_smoothing_above_a_curve_of_three_lets_close_tokens_overtake_the_best() -> None:
    out = dk.QuadraticSmoothing(0.5, 5)(NO_TEXT, torch.tensor([[9.0, 8.75]]))
    assert out.argmax().item() == 1


def test_quadratic_smoothing_leaves_infinities_as_they_are() -> None:
    for row in ([0.0, BANNED, -1.0], [BANNED, BANNED, BANNED], [math.inf, 0.0, BANNED]):
        out = dk.QuadraticSmoothing(1.0)(NO_TEXT, torch.tensor([row]))
        assert [row] == out.tolist()


def test_quadratic_smoothing_makes_no_nan_where_squares_overflow() -> None:
    out = dk.QuadraticSmoothing(1.0, 4)(NO_TEXT, torch.tensor([[0.0, -1e30, -1e15]]))
    assert not out.isnan().any()


def test_quadratic_smoothing_takes_one_number_for_each_prompt() -> None:
    out = dk.QuadraticSmoothing([0.5, 0.25], [1, 3])(NO_TEXT.expand(2, -1), SCORES.expand(2, -1))
    assert out.tolist() == [[9.0, 8.5, 7.0, 1.0], [9.0, 8.75, 7.0, -7.0]]


@LAWS
@given(CASES, st.floats(0.01, 2), st.floats(1, 3))
def test_quadratic_smoothing_keeps_the_order_for_curves_up_to_three(
    case: tuple[dk.History, torch.Tensor], factor: float, curve: float
) -> None:
    history, scores = case
    out = dk.QuadraticSmoothing(factor, curve).process(history, scores)
    order = scores.argsort(stable=True, dim=-1)
    assert (out.gather(1, order).diff().nan_to_num() >= 0).all()


@LAWS
@given(CASES, st.floats(0.01, 2), st.floats(1, 6))
def test_quadratic_smoothing_is_the_slow_reference(
    case: tuple[dk.History, torch.Tensor], factor: float, curve: float
) -> None:
    history, scores = case
    expected = torch.tensor([reference(row, factor, curve) for row in scores.tolist()])
    # The terms are added in another order, in float32.
    torch.testing.assert_close(
        expected, dk.QuadraticSmoothing(factor, curve).process(history, scores), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("factor", [0, -1, math.inf, math.nan, "1", None, True, [1.0, 0.0]])
def test_quadratic_smoothing_refuses_a_factor_that_is_not_above_zero(factor: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^QuadraticSmoothing: factor must be a finite number above 0, got"):
        dk.QuadraticSmoothing(factor)


@pytest.mark.parametrize("curve", [0.9, 0, -1, math.inf, math.nan, "1", None, True, [1.0, 0.0]])
def test_quadratic_smoothing_refuses_a_curve_below_one(curve: Any) -> None:  # noqa: ANN401
    message = r"^QuadraticSmoothing: curve must be a finite number of at least 1, got"
    with pytest.raises(ValueError, match=message):
        dk.QuadraticSmoothing(0.3, curve)


@pytest.mark.parametrize(
    "processor",
    [
        dk.QuadraticSmoothing(0.2),
        dk.QuadraticSmoothing(0.3, 5),
        lambda prompts: dk.QuadraticSmoothing([0.1 + i for i in prompts], [1 + i for i in prompts]),
    ],
)
def test_quadratic_smoothing_keeps_the_contract_of_processors(processor: Any) -> None:  # noqa: ANN401
    check_processor(processor, max_examples=15)
