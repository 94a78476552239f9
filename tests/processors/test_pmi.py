import math
from typing import Any

import pytest

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel, check_processor
from tests.processors.second import SPARSE, after, always


def test_where_the_entropy_is_at_least_the_threshold_the_prior_is_subtracted() -> None:
    prior = always(0.25, 0.75)
    unsure, sure = [0.5, 0.5], [0.99, 0.01]  # 0.693 and 0.056 nats
    assert after(dk.PMI(prior, 1, 0.5), unsure).exp()[0].tolist() == pytest.approx([2.0, 2 / 3])
    assert after(dk.PMI(prior, 0.5, 0.5), unsure).exp()[0].tolist() == pytest.approx([1.0, 0.75**-0.5 / 2])
    assert after(dk.PMI(prior, 1, 0.5), sure).exp()[0].tolist() == pytest.approx(sure)
    assert after(dk.PMI(prior, 1, 0), sure).exp()[0].tolist() == pytest.approx([0.99 / 0.25, 0.01 / 0.75])


def test_the_entropy_is_in_nats() -> None:
    prior = always(0.25, 0.75)
    below, above = (after(dk.PMI(prior, 1, threshold), [0.5, 0.5]) for threshold in (0.693, 0.694))
    assert below.exp()[0].tolist() == pytest.approx([2.0, 2 / 3])
    assert above.exp()[0].tolist() == pytest.approx([0.5, 0.5])


def test_banned_tokens_add_nothing_to_the_entropy_and_stay_banned() -> None:
    out = after(dk.PMI(always(0.0, 0.5, 0.5), 1, 0.1), [0.0, 0.0, 1.0])
    assert out[0].tolist() == [-math.inf, -math.inf, 0.0]
    out = after(dk.PMI(always(0.0, 0.5, 0.5), 1, 0.0), [0.0, 0.0, 1.0])
    assert out.exp()[0].tolist() == pytest.approx([0.0, 0.0, 2.0])


def test_the_second_model_advances_where_the_first_is_sure() -> None:
    # Sure of 1 after 0 and 2 after 1, then of nothing; the prior after 2 is against 0.
    model = MarkovModel([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.4, 0.3, 0.3]])
    prior = MarkovModel([[0.1, 0.1, 0.8], [0.8, 0.1, 0.1], [0.8, 0.1, 0.1]])
    assert dk.decode(model, [[0]], dk.Greedy(), max_new_tokens=3).hypotheses() == [[[1, 2, 0]]]
    out = dk.decode(model, [[0]], dk.Greedy(), dk.PMI(prior, 1, 0.5), max_new_tokens=3)
    assert out.hypotheses() == [[[1, 2, 1]]]


def test_the_second_model_begins_with_the_last_token_or_the_given_prompts() -> None:
    prior, probs = MarkovModel([[0.2, 0.8], [0.5, 0.5]]), [0.5, 0.5]
    assert after(dk.PMI(prior, 1, 0), probs, [[1, 0]]).exp()[0].tolist() == pytest.approx([2.5, 0.625])
    assert after(dk.PMI(prior, 1, 0, [[1]]), probs, [[1, 0]]).exp()[0].tolist() == pytest.approx([1.0, 1.0])


def test_tokens_impossible_for_the_second_model_are_preferred_where_the_first_is_unsure() -> None:
    out = after(dk.PMI(always(0.0, 1.0), 1, 0), [0.5, 0.5])
    assert out.isfinite().all()
    assert out.argmax() == 0


@pytest.mark.parametrize("name", ["weight", "threshold"])
@pytest.mark.parametrize("number", [-0.1, math.inf, math.nan, "1", None, True, [1.0, -1.0]])
def test_numbers_must_be_finite_and_at_least_zero(name: str, number: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=f"^PMI: {name} must be a finite number of at least 0, got"):
        dk.PMI(always(0.5, 0.5), **{"weight": 1.0, "threshold": 1.0, name: number})


@pytest.mark.parametrize("second", [HashModel(9, 5), SPARSE])
@pytest.mark.parametrize("threshold", [0, 1.0])
def test_pmi_keeps_the_contract_of_processors(second: dk.Model, threshold: float) -> None:
    check_processor(dk.PMI(second, 1.0, threshold), max_examples=10)


def test_pmi_by_prompt_keeps_the_contract_of_processors() -> None:
    second = HashModel(9, 5)
    check_processor(
        lambda numbers: dk.PMI(
            second, [float(n) for n in numbers], [0.4 * n for n in numbers], [[n] * (1 + n) for n in numbers]
        ),
        max_examples=20,
    )
