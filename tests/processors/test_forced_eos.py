from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import ForcedEOSTokenLogitsProcessor

import decodekit as dk
from decodekit.testing import MarkovModel, check_processor
from tests.processors.parity import LAWS, Call, assert_same_at_every_step, calls, history_of, step_scores

BANNED = -torch.inf
# Never ends by itself.
GOES_ON = MarkovModel([[1.0, 0.0], [0.0, 1.0]], end_ids=(0,))


def test_forced_eos_allows_the_end_ids_alone_at_the_last_new_token() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0]])
    out = step_scores(dk.ForcedEOS(3, end_ids=[0, 2]), history_of([[1, 1]]), scores, [[1], [1], [1]])
    assert out == [scores.tolist(), scores.tolist(), [[0.0, BANNED, 0.0]], scores.tolist()]


def test_forced_eos_allows_end_ids_even_if_they_were_banned() -> None:
    out = step_scores(dk.ForcedEOS(1, end_ids=0), history_of([[1]]), torch.tensor([[BANNED, 1.0]]), [])
    assert out == [[[0.0, BANNED]]]


def test_forced_eos_ends_every_text_of_a_padded_batch_at_its_last_new_token() -> None:
    out = dk.decode(GOES_ON, [[1, 1, 1], [1]], dk.Greedy(), dk.ForcedEOS(3, end_ids=0), max_new_tokens=3)
    assert out.hypotheses() == [[[1, 1, 0]], [[1, 1, 0]]]
    assert out.finish_reason == [["end"], ["end"]]


def test_forced_eos_costs_a_beam_nothing() -> None:
    decoder = dk.BeamSearch(2, scorer=dk.LogProb())
    out = dk.decode(GOES_ON, [1], decoder, dk.ForcedEOS(2, end_ids=0), max_new_tokens=2)
    assert out.hypotheses() == [[[1, 0]]]
    assert out.score.tolist() == [[0.0]]


def test_forced_eos_may_differ_by_prompt() -> None:
    out = dk.decode(GOES_ON, [[1], [1]], dk.Greedy(), dk.ForcedEOS([1, 3], end_ids=0), max_new_tokens=5)
    assert out.hypotheses() == [[[0]], [[1, 1, 0]]]


def test_forced_eos_refuses_an_empty_list_of_numbers() -> None:
    with pytest.raises(ValueError, match=r"^ForcedEOS: max_new_tokens must be one number, or one for each"):
        dk.ForcedEOS([1, 3], end_ids=0).init(history_of([[1]]))


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "3", None, [1, 0]])
def test_forced_eos_refuses_a_number_that_is_not_an_integer_of_at_least_one(count: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^ForcedEOS: max_new_tokens must be an integer of at least 1, got"):
        dk.ForcedEOS(count, end_ids=0)


@pytest.mark.parametrize("end_ids", [-1, [0, -1], [1.0], "a", [None], True])
def test_forced_eos_refuses_end_ids_that_are_not_ids(end_ids: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^ForcedEOS: token ids must be integers of at least 0, got"):
        dk.ForcedEOS(1, end_ids=end_ids)


def test_forced_eos_refuses_to_allow_nothing() -> None:
    with pytest.raises(ValueError, match=r"^ForcedEOS: end_ids must hold at least one id, got none"):
        dk.ForcedEOS(1, end_ids=())


def test_forced_eos_refuses_an_end_id_outside_the_vocabulary_when_applied() -> None:
    with pytest.raises(ValueError, match=r"^ForcedEOS: token ids must be below the vocabulary size 4, got 4"):
        step_scores(dk.ForcedEOS(1, end_ids=4), history_of([[1]]), torch.zeros(1, 4), [])


@pytest.mark.parametrize("count", [1, 3, 99])
def test_forced_eos_keeps_the_contract_of_processors(count: int) -> None:
    check_processor(dk.ForcedEOS(count, end_ids=[0, 7]), unbans=True, max_examples=20)


def test_forced_eos_per_prompt_keeps_the_contract_of_processors() -> None:
    check_processor(
        lambda prompts: dk.ForcedEOS([1 + n for n in prompts], end_ids=2), unbans=True, max_examples=20
    )


@LAWS
@given(calls(), st.integers(1, 8), st.sets(st.integers(0, 8), min_size=1), st.integers(0, 2**31))
def test_forced_eos_is_hugging_faces_at_every_step(call: Call, count: int, ids: set[int], seed: int) -> None:
    tokens, scores = call
    end_ids = sorted({end_id % scores.shape[1] for end_id in ids})
    theirs = ForcedEOSTokenLogitsProcessor(tokens.shape[1] + count, end_ids)
    assert_same_at_every_step(theirs, dk.ForcedEOS(count, end_ids=end_ids), call, seed)
