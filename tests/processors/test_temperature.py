import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.parity import LAWS, Call, assert_same, calls

NO_TEXT = torch.tensor([[0]])


def test_temperature_divides_the_scores() -> None:
    assert dk.Temperature(0.5)(NO_TEXT, torch.tensor([[1.0, 0.0, -3.0]])).tolist() == [[2.0, 0.0, -6.0]]


def test_temperature_two_gives_the_square_root_of_the_odds() -> None:
    scores = torch.tensor([[16.0, 1.0]]).log()
    warm = dk.Temperature(2.0)(NO_TEXT, scores).softmax(-1)
    # 16 : 1 becomes 4 : 1; the logarithm of 16 rounds in the last place.
    torch.testing.assert_close(torch.tensor([[0.8, 0.2]]), warm)


def test_temperature_one_changes_nothing() -> None:
    scores = torch.tensor([[0.1, -torch.inf, 3.7]])
    assert scores.tolist() == dk.Temperature(1)(NO_TEXT, scores).tolist()


def test_temperature_leaves_infinities_as_they_are() -> None:
    scores = [[torch.inf, -torch.inf, 0.0]]
    assert scores == dk.Temperature(0.3)(NO_TEXT, torch.tensor(scores)).tolist()


def test_temperature_takes_an_integer() -> None:
    scores = torch.tensor([[1.0, 2.0]])
    assert dk.Temperature(2.0)(NO_TEXT, scores).tolist() == dk.Temperature(2)(NO_TEXT, scores).tolist()


@pytest.mark.parametrize("temperature", [0, 0.0, -0.0, -1, -0.5, math.inf, -math.inf, math.nan])
def test_temperature_refuses_all_but_finite_numbers_above_zero(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"^Temperature: temperature must be a finite number above 0, got"):
        dk.Temperature(temperature)


def test_temperature_zero_advises_greedy() -> None:
    with pytest.raises(ValueError, match=r"use Greedy\(\)"):
        dk.Temperature(0)


@pytest.mark.parametrize("temperature", [0.2, 1, 3.5])
def test_temperature_keeps_the_contract_of_processors(temperature: float) -> None:
    check_processor(dk.Temperature(temperature), max_examples=20)


@LAWS
@given(calls(), st.floats(0.01, 100.0))
def test_temperature_is_hugging_faces(call: Call, temperature: float) -> None:
    assert_same(TemperatureLogitsWarper(temperature), dk.Temperature(temperature), call)
