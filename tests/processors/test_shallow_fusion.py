import math
from typing import Any

import pytest
import torch

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel, check_processor
from tests.processors.second import SPARSE, after, always


def test_fusion_adds_the_weighted_log_probability() -> None:
    out = after(dk.ShallowFusion(always(0.25, 0.75), 0.5), [0.6, 0.4])
    assert out.exp()[0].tolist() == pytest.approx([0.6 * 0.5, 0.4 * 0.75**0.5])


def test_a_weight_below_zero_subtracts_a_language_model() -> None:
    out = after(dk.ShallowFusion(always(0.25, 0.75), -1), [0.6, 0.4])
    assert out.exp()[0].tolist() == pytest.approx([0.6 / 0.25, 0.4 / 0.75])


def test_fusions_add_up_in_any_order() -> None:
    first, second = dk.ShallowFusion(always(0.25, 0.75), 0.5), dk.ShallowFusion(always(0.9, 0.1), -0.5)
    torch.testing.assert_close(after(first | second, [0.6, 0.4]), after(second | first, [0.6, 0.4]))


def test_the_language_model_reads_the_run_or_the_given_prompts() -> None:
    model, lm = always(0.5, 0.5), MarkovModel([[0.1, 0.9], [0.9, 0.1]])
    own = dk.decode(model, [[0], [1, 1]], dk.Greedy(), dk.ShallowFusion(lm, 1), max_new_tokens=3)
    assert own.hypotheses() == [[[1, 0, 1]], [[0, 1, 0]]]
    given = dk.ShallowFusion(lm, 1, prompts=[[1]])
    assert dk.decode(model, [[0]], dk.Greedy(), given, max_new_tokens=3).hypotheses() == [[[0, 1, 0]]]


def test_a_beams_score_is_the_sum_of_both_models() -> None:
    model, lm = always(0.6, 0.4), always(0.3, 0.7)
    search = dk.BeamSearch(2, scorer=dk.LogProb(), num_return=2)
    out = dk.decode(model, [[0]], search, dk.ShallowFusion(lm, 1.0), max_new_tokens=2)
    assert out.hypotheses()[0][0] == [1, 1]
    assert out.score[0, 0].exp().item() == pytest.approx((0.4 * 0.7) ** 2)


def test_tokens_impossible_for_the_language_model_are_banned_unless_it_is_subtracted() -> None:
    lm = always(0.0, 1.0)
    assert after(dk.ShallowFusion(lm, 0.1), [0.5, 0.5])[0, 0] == -math.inf
    assert after(dk.ShallowFusion(lm, 0), [0.5, 0.5]).exp()[0].tolist() == pytest.approx([0.5, 0.5])
    assert after(dk.ShallowFusion(lm, -0.1), [0.5, 0.5]).isfinite().all()
    assert after(dk.ShallowFusion(lm, -0.1), [0.0, 1.0])[0, 0] == -math.inf


@pytest.mark.parametrize("weight", [math.inf, math.nan, "1", None, True, [0.5, math.inf], []])
def test_a_weight_must_be_a_finite_number(weight: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^ShallowFusion: weight must be "):
        dk.ShallowFusion(always(0.5, 0.5), weight)


@pytest.mark.parametrize("second", [HashModel(9, 5), SPARSE])
@pytest.mark.parametrize("weight", [0.3, 0, -0.3])
def test_fusion_keeps_the_contract_of_processors(second: dk.Model, weight: float) -> None:
    check_processor(dk.ShallowFusion(second, weight), max_examples=10)


def test_fusion_by_prompt_keeps_the_contract_of_processors() -> None:
    second = HashModel(9, 5)
    check_processor(
        lambda numbers: dk.ShallowFusion(second, [0.5 - n for n in numbers], [[n] for n in numbers]),
        max_examples=20,
    )
