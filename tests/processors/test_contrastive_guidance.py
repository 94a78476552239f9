import math
from typing import Any

import pytest

import decodekit as dk
from decodekit.testing import HashModel, check_processor
from tests.processors.second import SPARSE, after, always

BANNED = -math.inf


def test_the_contrast_is_the_ratio_of_probabilities() -> None:
    out = after(dk.ContrastiveGuidance(always(0.5, 0.25, 0.25)), [0.5, 0.25, 0.25])
    assert out.exp()[0].tolist() == pytest.approx([1.0, 1.0, 1.0])
    out = after(dk.ContrastiveGuidance(always(0.5, 0.4, 0.1)), [0.4, 0.4, 0.2])
    assert out.exp()[0].tolist() == pytest.approx([0.8, 1.0, 2.0])


def test_what_is_less_likely_than_alpha_of_the_likeliest_is_banned() -> None:
    # The last token has the largest ratio, and is not plausible.
    second, probs = always(0.5, 0.499, 0.001), [0.5, 0.42, 0.08]
    assert after(dk.ContrastiveGuidance(second, alpha=0.25), probs)[0, 2] == BANNED
    assert after(dk.ContrastiveGuidance(second, alpha=0.1), probs).argmax() == 2
    assert after(dk.ContrastiveGuidance(second, alpha=1), probs)[0, 1:].tolist() == [BANNED, BANNED]
    assert after(dk.ContrastiveGuidance(second, alpha=0), probs).isfinite().all()


def test_the_cut_keeps_a_token_that_is_just_plausible() -> None:
    assert after(dk.ContrastiveGuidance(always(0.5, 0.5), alpha=0.5), [0.5, 0.25]).isfinite().all()


def test_a_weight_is_an_exponent_and_a_temperature_flattens_the_amateur() -> None:
    second = always(0.8, 0.2)  # odds of 4 : 1, and at temperature 2 of 2 : 1
    weighed = after(dk.ContrastiveGuidance(second, weight=0.5), [0.5, 0.5]).exp()[0].tolist()
    assert weighed == pytest.approx([0.5 / 0.8**0.5, 0.5 / 0.2**0.5])
    tempered = after(dk.ContrastiveGuidance(second, temperature=2), [0.5, 0.5]).exp()[0].tolist()
    assert tempered == pytest.approx([0.5 * 3 / 2, 0.5 * 3])
    assert after(dk.ContrastiveGuidance(second, weight=0), [0.6, 0.4]).exp()[0].tolist() == pytest.approx(
        [0.6, 0.4]
    )


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_form_with_beta_is_a_weight_and_a_temperature(beta: float) -> None:
    expert, amateur = [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]
    ours = dk.Chain(
        dk.ContrastiveGuidance(always(*amateur), 0.0, beta / (1 + beta)), dk.Temperature(1 / (1 + beta))
    )
    expected = [(1 + beta) * math.log(e) - beta * math.log(a) for e, a in zip(expert, amateur, strict=True)]
    assert after(ours, expert)[0].tolist() == pytest.approx(expected, rel=1e-5)  # float32


def test_a_token_impossible_for_the_amateur_is_preferred_where_it_is_plausible() -> None:
    out = after(dk.ContrastiveGuidance(always(0.0, 0.0, 0.0, 1.0)), [0.3, 0.01, 0.0, 0.69])
    assert out.argmax() == 0
    assert out[0, :1].isfinite().all()
    assert out[0, 1:3].tolist() == [BANNED, BANNED]


@pytest.mark.parametrize(
    ("options", "must"),
    [
        ({"alpha": -0.1}, r"alpha must be in \[0, 1\], got"),
        ({"alpha": 1.1}, r"alpha must be in \[0, 1\], got"),
        ({"alpha": math.nan}, r"alpha must be in \[0, 1\], got"),
        ({"alpha": True}, r"alpha must be in \[0, 1\], got"),
        ({"weight": -1.0}, "weight must be a finite number of at least 0, got"),
        ({"weight": math.inf}, "weight must be a finite number of at least 0, got"),
        ({"weight": "1"}, "weight must be a finite number of at least 0, got"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0, got"),
        ({"temperature": [1.0, -1.0]}, "temperature must be a finite number above 0, got"),
        ({"temperature": math.inf}, "temperature must be a finite number above 0, got"),
    ],
)
def test_numbers_outside_their_range_are_refused(options: dict[str, Any], must: str) -> None:
    with pytest.raises(ValueError, match=f"^ContrastiveGuidance: {must}"):
        dk.ContrastiveGuidance(always(0.5, 0.5), **options)


@pytest.mark.parametrize("second", [HashModel(9, 5), SPARSE])
@pytest.mark.parametrize("numbers", [(0.1, 1.0, 1.0), (0.0, 0.5, 2.0), (1.0, 0.0, 0.5)])
def test_contrastive_guidance_keeps_the_contract_of_processors(
    second: dk.Model, numbers: tuple[float, float, float]
) -> None:
    check_processor(dk.ContrastiveGuidance(second, *numbers), max_examples=10)


def test_contrastive_guidance_per_prompt_keeps_the_contract_of_processors() -> None:
    second = HashModel(9, 5)
    check_processor(
        lambda numbers: dk.ContrastiveGuidance(
            second,
            [0.1 * number for number in numbers],
            [0.5 * number for number in numbers],
            [1.0 + number for number in numbers],
        ),
        max_examples=20,
    )
