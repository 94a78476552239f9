import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.parity import LAWS
from tests.processors.reference import BANNED, CASES, NO_TEXT, assert_bans, kept, probabilities

# Powers of two, so that probabilities are exact: 1/8, 1/2, 1/8, 1/4.
EIGHTHS = torch.tensor([[0.0, 2.0, 0.0, 1.0]]) * math.log(2)


def test_top_a_keeps_tokens_as_likely_as_a_times_the_square_of_the_largest_probability() -> None:
    # The largest is 1/2, and its square 1/4.
    assert kept(dk.TopA(1.0), EIGHTHS) == [1, 3]
    assert kept(dk.TopA(0.6), EIGHTHS) == [1, 3]
    assert kept(dk.TopA(0.5), EIGHTHS) == [0, 1, 2, 3]


def test_top_a_zero_keeps_every_token() -> None:
    assert kept(dk.TopA(0), [0.0, 80.0, -80.0]) == [0, 1, 2]


def test_top_a_leaves_banned_tokens_banned() -> None:
    assert kept(dk.TopA(0), [0.0, BANNED, 1.0]) == [0, 2]
    scores = torch.full((1, 3), BANNED)
    assert scores.tolist() == dk.TopA(1)(NO_TEXT, scores).tolist()


def test_top_a_takes_one_number_for_each_prompt() -> None:
    out = dk.TopA([1.0, 0.5])(NO_TEXT.expand(4, -1), EIGHTHS.expand(4, -1))
    expected = [[False, True, False, True]] * 2 + [[True] * 4] * 2
    assert expected == (out > BANNED).tolist()


@LAWS
@given(CASES, st.sampled_from([0.0, 0.2, 1.0]) | st.floats(0, 1))
def test_top_a_is_the_slow_reference(case: tuple[dk.History, torch.Tensor], a: float) -> None:
    history, scores = case
    probs = [probabilities(row) for row in scores.tolist()]
    expected = [[a * max(row) ** 2 - prob for prob in row] for row in probs]
    assert_bans(dk.TopA(a).process(history, scores), scores, expected, near=1e-6)


@pytest.mark.parametrize("a", [-0.1, 1.1, math.inf, math.nan, "1", None, True, [0.1, 2]])
def test_top_a_refuses_numbers_outside_zero_to_one(a: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^TopA: a must be in \[0, 1\], got"):
        dk.TopA(a)


@pytest.mark.parametrize(
    "processor", [dk.TopA(0.2), dk.TopA(1), lambda prompts: dk.TopA([1 / (1 + i) for i in prompts])]
)
def test_top_a_keeps_the_contract_of_processors(processor: Any) -> None:  # noqa: ANN401
    check_processor(processor, max_examples=15)
