from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import SuppressTokensLogitsProcessor

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.parity import LAWS, Call, assert_same, calls

NO_TEXT = torch.tensor([[0]])
BANNED = -torch.inf


def test_suppress_tokens_bans_its_tokens_and_leaves_the_others() -> None:
    out = dk.SuppressTokens([0, 2])(NO_TEXT, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert out.tolist() == [[BANNED, 2.0, BANNED, 4.0]]


def test_suppress_tokens_of_nothing_changes_nothing() -> None:
    scores = torch.tensor([[1.0, BANNED]])
    assert scores.tolist() == dk.SuppressTokens([])(NO_TEXT, scores).tolist()


def test_suppress_tokens_takes_any_iterable_and_reads_it_once() -> None:
    processor = dk.SuppressTokens(token for token in (2, 2, 0))
    for _ in range(2):
        assert processor(NO_TEXT, torch.zeros(1, 3)).tolist() == [[BANNED, 0.0, BANNED]]


@pytest.mark.parametrize("token", [-1, 1.0, "a", None, True])
def test_suppress_tokens_refuses_what_is_not_an_id(token: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^SuppressTokens: token ids must be integers of at least 0, got"):
        dk.SuppressTokens([0, token])


def test_suppress_tokens_refuses_an_id_outside_the_vocabulary_when_applied() -> None:
    message = r"^SuppressTokens: token ids must be below the vocabulary size 3, got 3"
    with pytest.raises(ValueError, match=message):
        dk.SuppressTokens([0, 3])(NO_TEXT, torch.zeros(1, 3))


@pytest.mark.parametrize("tokens", [[], [0], [1, 4, 8]])
def test_suppress_tokens_keeps_the_contract_of_processors(tokens: list[int]) -> None:
    check_processor(dk.SuppressTokens(tokens), max_examples=20)


@LAWS
@given(calls(), st.sets(st.integers(0, 8)))
def test_suppress_tokens_is_hugging_faces(call: Call, ids: set[int]) -> None:
    tokens = [token for token in ids if token < call[1].shape[1]]
    assert_same(SuppressTokensLogitsProcessor(tokens), dk.SuppressTokens(tokens), call)
