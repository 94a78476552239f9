from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import SuppressTokensAtBeginLogitsProcessor

import decodekit as dk
from decodekit.testing import MarkovModel, check_processor
from tests.processors.parity import LAWS, Call, assert_same_at_every_step, calls, history_of, step_scores

BANNED = -torch.inf
FREE = [[0.0, 0.0, 0.0]]


def test_suppress_tokens_at_begin_bans_at_the_first_new_token_only() -> None:
    out = step_scores(dk.SuppressTokensAtBegin([0, 2]), history_of([[1, 1]]), torch.zeros(1, 3), [[1], [1]])
    assert out == [[[BANNED, 0.0, BANNED]], FREE, FREE]


def test_suppress_tokens_at_begin_waits_for_forced_tokens() -> None:
    out = step_scores(dk.SuppressTokensAtBegin(1, begin=1), history_of([[1]]), torch.zeros(1, 3), [[1], [1]])
    assert out == [FREE, [[0.0, BANNED, 0.0]], FREE]


def test_suppress_tokens_at_begin_finds_the_beginning_of_every_prompt_of_a_padded_batch() -> None:
    model = MarkovModel([[0.6, 0.4], [0.6, 0.4]])
    out = dk.decode(model, [[1, 1, 1], [1]], dk.Greedy(), dk.SuppressTokensAtBegin(0), max_new_tokens=2)
    assert out.hypotheses() == [[[1, 0]], [[1, 0]]]


@pytest.mark.parametrize("tokens", [-1, [0, -1], [1.0], "a", [None], True])
def test_suppress_tokens_at_begin_refuses_tokens_that_are_not_ids(tokens: Any) -> None:  # noqa: ANN401
    message = r"^SuppressTokensAtBegin: token ids must be integers of at least 0, got"
    with pytest.raises(ValueError, match=message):
        dk.SuppressTokensAtBegin(tokens)


@pytest.mark.parametrize("begin", [-1, 1.0, True, "1", None])
def test_suppress_tokens_at_begin_refuses_a_begin_that_is_no_count(begin: Any) -> None:  # noqa: ANN401
    message = r"^SuppressTokensAtBegin: begin must be an integer of at least 0, got"
    with pytest.raises(ValueError, match=message):
        dk.SuppressTokensAtBegin(0, begin=begin)


def test_suppress_tokens_at_begin_refuses_an_id_outside_the_vocabulary_when_applied() -> None:
    message = r"^SuppressTokensAtBegin: token ids must be below the vocabulary size 4, got 4"
    with pytest.raises(ValueError, match=message):
        step_scores(dk.SuppressTokensAtBegin(4), history_of([[1]]), torch.zeros(1, 4), [])


@pytest.mark.parametrize("begin", [0, 1, 9])
def test_suppress_tokens_at_begin_keeps_the_contract_of_processors(begin: int) -> None:
    check_processor(dk.SuppressTokensAtBegin([0, 7], begin=begin), max_examples=20)


@LAWS
@given(calls(), st.integers(0, 4), st.sets(st.integers(0, 8)), st.integers(0, 2**31))
def test_suppress_tokens_at_begin_is_hugging_faces_at_every_step(
    call: Call, begin: int, ids: set[int], seed: int
) -> None:
    tokens, scores = call
    suppressed = [token for token in ids if token < scores.shape[1]]
    theirs = SuppressTokensAtBeginLogitsProcessor(suppressed, tokens.shape[1] + begin)
    assert_same_at_every_step(theirs, dk.SuppressTokensAtBegin(suppressed, begin=begin), call, seed)
