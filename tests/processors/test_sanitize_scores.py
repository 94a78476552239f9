from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import InfNanRemoveLogitsProcessor

import decodekit as dk
from decodekit.testing import MarkovModel, check_processor
from tests.processors.parity import LAWS, Call, assert_same, calls

NO_TEXT = torch.tensor([[0]])
BANNED = -torch.inf
MOST = torch.finfo(torch.float32).max
BAD = torch.tensor([[torch.nan, 1.0, torch.inf, BANNED]])


class Overflow(dk.StatelessProcessor):
    """Makes one score infinite, and one NaN."""

    def process(self, history: dk.History, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return scores + torch.tensor([torch.inf, torch.nan])


def test_sanitize_scores_leaves_numbers_and_bans_and_nothing_else() -> None:
    assert dk.SanitizeScores()(NO_TEXT, BAD).tolist() == [[0.0, 1.0, MOST, BANNED]]


def test_sanitize_scores_that_unbans_leaves_numbers_only() -> None:
    assert dk.SanitizeScores(unban=True)(NO_TEXT, BAD).tolist() == [[0.0, 1.0, MOST, -MOST]]


def test_sanitize_scores_lets_a_run_continue_that_is_refused_without() -> None:
    model = MarkovModel([[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(dk.DecodingError):
        dk.decode(model, [1], dk.Greedy(), Overflow(), max_new_tokens=2)
    out = dk.decode(model, [1], dk.Greedy(), [Overflow(), dk.SanitizeScores()], max_new_tokens=2)
    assert out.hypotheses() == [[[0, 0]]]


def test_sanitize_scores_keeps_beams_from_banned_tokens() -> None:
    # Two of three tokens are banned, so there is only one hypothesis.
    model = MarkovModel([[0.2, 0.3, 0.5]] * 3)
    chain = [dk.SuppressTokens([0, 1]), dk.SanitizeScores()]
    out = dk.decode(model, [0], dk.BeamSearch(2, num_return=2), chain, max_new_tokens=2)
    assert {0, 1}.isdisjoint(token for hypotheses in out.hypotheses() for h in hypotheses for token in h)


@pytest.mark.parametrize("unban", [0, 1, None, "yes"])
def test_sanitize_scores_refuses_an_unban_that_is_neither_true_nor_false(unban: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^SanitizeScores: unban must be True or False, got"):
        dk.SanitizeScores(unban=unban)


@pytest.mark.parametrize("unban", [False, True])
def test_sanitize_scores_keeps_the_contract_of_processors(unban: bool) -> None:  # noqa: FBT001
    check_processor(dk.SanitizeScores(unban=unban), unbans=unban, max_examples=20)


@LAWS
@given(calls(), st.sets(st.integers(0, 8)))
def test_sanitize_scores_that_unbans_is_hugging_faces(call: Call, nans: set[int]) -> None:
    tokens, scores = call
    scores[:, [token for token in nans if token < scores.shape[1]]] = torch.nan
    # Compared by hand, since NaN is not equal to itself.
    expected = InfNanRemoveLogitsProcessor()(tokens, scores.clone())
    assert expected.tolist() == dk.SanitizeScores(unban=True)(tokens, scores).tolist()
    kept = expected.masked_fill(scores == BANNED, BANNED)
    assert kept.tolist() == dk.SanitizeScores()(tokens, scores).tolist()


@LAWS
@given(calls())
def test_sanitize_scores_does_not_write_to_its_arguments(call: Call) -> None:
    assert_same(InfNanRemoveLogitsProcessor(), dk.SanitizeScores(unban=True), call)
