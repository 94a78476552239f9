import math

import pytest
import torch
from hypothesis import given
from transformers import LogitNormalization

import decodekit as dk
from decodekit.testing import MarkovModel, check_processor
from tests.processors.parity import LAWS, Call, assert_same, calls

NO_TEXT = torch.tensor([[0]])
BANNED = -torch.inf


def test_renormalize_makes_probabilities_add_up_to_one() -> None:
    out = dk.Renormalize()(NO_TEXT, torch.tensor([[3.0, 3.0, BANNED, BANNED]]))
    # float32 logarithms
    assert out.exp()[0].tolist() == pytest.approx([0.5, 0.5, 0.0, 0.0])


def test_renormalize_leaves_a_row_banned_in_which_all_is_banned() -> None:
    assert dk.Renormalize()(NO_TEXT, torch.tensor([[BANNED, BANNED]])).tolist() == [[BANNED, BANNED]]


def test_renormalize_changes_the_score_of_a_beam_after_a_ban() -> None:
    model = MarkovModel([[0.5, 0.25, 0.25]] * 3)
    decoder = dk.BeamSearch(2, scorer=dk.LogProb())
    without = dk.decode(model, [0], decoder, dk.SuppressTokens(0), max_new_tokens=1)
    out = dk.decode(model, [0], decoder, [dk.SuppressTokens(0), dk.Renormalize()], max_new_tokens=1)
    # float32 logarithms
    assert without.score.tolist() == [[pytest.approx(math.log(0.25))]]
    assert out.score.tolist() == [[pytest.approx(math.log(0.5))]]


@pytest.mark.slow
def test_renormalize_keeps_the_contract_of_processors() -> None:
    check_processor(dk.Renormalize())


@LAWS
@given(calls())
def test_renormalize_is_hugging_faces(call: Call) -> None:
    tokens, scores = call
    # With plus infinity both make NaN, which is not equal to itself, and which decode refuses.
    assert_same(LogitNormalization(), dk.Renormalize(), (tokens, scores.clamp(max=1e30)))
