import math
from typing import Any

import pytest

import decodekit as dk
from decodekit.testing import HashModel, check_processor
from tests.processors.second import SPARSE, after, always


def test_experts_multiply_the_odds_by_their_ratio() -> None:
    # 1 : 1 times (3 : 1) / (1 : 3) is 9 : 1.
    out = after(dk.DExperts(always(0.75, 0.25), always(0.25, 0.75), 1.0), [0.5, 0.5])
    assert out.exp()[0].tolist() == pytest.approx([0.9, 0.1])
    half = after(dk.DExperts(always(0.75, 0.25), always(0.25, 0.75), 0.5), [0.5, 0.5])
    assert half.exp()[0].tolist() == pytest.approx([0.75, 0.25])


def test_an_alpha_of_zero_and_experts_that_agree_change_nothing() -> None:
    for processor in (
        dk.DExperts(always(0.0, 1.0), always(1.0, 0.0), 0),
        dk.DExperts(always(0.7, 0.3), always(0.7, 0.3), 2),
    ):
        assert after(processor, [0.6, 0.4]).exp()[0].tolist() == pytest.approx([0.6, 0.4])


def test_banned_tokens_of_the_base_model_stay_banned() -> None:
    steered = dk.Chain(dk.TopK(2), dk.DExperts(always(0.1, 0.1, 0.8), always(0.4, 0.4, 0.2), 2.0))
    assert after(steered, [0.5, 0.3, 0.2])[0, 2] == -math.inf


def test_a_token_impossible_for_the_expert_is_banned_and_for_the_antiexpert_preferred() -> None:
    out = after(dk.DExperts(always(0.0, 0.5, 0.5), always(0.0, 0.0, 1.0), 1.0), [0.4, 0.3, 0.3])
    assert out[0, 0] == -math.inf
    assert out[0, 1:].isfinite().all()
    assert out.argmax() == 1


@pytest.mark.parametrize("alpha", [-0.1, math.inf, math.nan, "1", None, False, [1.0, -1.0]])
def test_an_alpha_must_be_a_finite_number_of_at_least_zero(alpha: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^DExperts: alpha must be a finite number of at least 0, got"):
        dk.DExperts(always(0.5, 0.5), always(0.5, 0.5), alpha)


@pytest.mark.parametrize(
    "models", [(HashModel(9, 5), HashModel(9, 6)), (SPARSE, HashModel(9, 6)), (SPARSE, SPARSE)]
)
def test_experts_keep_the_contract_of_processors(models: tuple[dk.Model, dk.Model]) -> None:
    check_processor(dk.DExperts(*models, 1.5), max_examples=10)


def test_experts_per_prompt_keep_the_contract_of_processors() -> None:
    first, second = HashModel(9, 5), HashModel(9, 6)
    check_processor(lambda numbers: dk.DExperts(first, second, [0.5 * n for n in numbers]), max_examples=20)
