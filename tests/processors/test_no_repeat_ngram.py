from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import NoRepeatNGramLogitsProcessor

import decodekit as dk
from decodekit.testing import check_processor
from decodekit.testing.strategies import cases
from tests.processors.parity import LAWS, Call, assert_same, calls

BANNED = -torch.inf


def banned(n: int, text: list[int], vocab: int = 5) -> list[int]:
    """The ids that may not follow the ids in `text`."""
    out = dk.NoRepeatNGram(n)(torch.tensor([text]), torch.zeros(1, vocab))
    return torch.where(out[0] == BANNED)[0].tolist()


def test_no_repeat_ngram_bans_tokens_that_followed_the_same_tokens_before() -> None:
    assert banned(2, [1, 2, 1]) == [2]
    assert banned(3, [1, 2, 3, 4, 1, 2]) == [3]


def test_no_repeat_ngram_bans_every_token_that_ever_followed() -> None:
    assert banned(2, [1, 2, 1, 3, 1]) == [2, 3]


def test_no_repeat_ngram_of_one_bans_every_token_of_the_sequence() -> None:
    assert banned(1, [3, 0, 3]) == [0, 3]


def test_no_repeat_ngram_may_overlap_itself() -> None:
    assert banned(2, [1, 1]) == [1]
    assert banned(3, [1, 1, 1]) == [1]


def test_no_repeat_ngram_bans_nothing_while_no_ngram_can_be_complete() -> None:
    assert banned(3, [1, 1]) == []
    assert banned(4, [1]) == []


def test_no_repeat_ngram_ignores_ids_outside_the_vocabulary() -> None:
    assert banned(2, [1, 7, 1], vocab=3) == []
    assert banned(2, [7, 1, 7], vocab=3) == [1]


def test_no_repeat_ngram_counts_neither_padding_nor_unwritten_columns() -> None:
    tokens = torch.tensor([[1, 2, 1, 1]])
    valid = torch.tensor([[False, True, True, False]])
    history = dk.History(tokens, valid, torch.tensor(3))
    assert dk.NoRepeatNGram(2).process(history, torch.zeros(1, 3)).tolist() == [[0.0, 0.0, 0.0]]
    assert banned(2, [1, 2, 1], vocab=3) == [2]


@pytest.mark.parametrize("n", [0, -1, 1.0, 2.5, True, "3", None])
def test_no_repeat_ngram_refuses_an_n_that_is_not_an_integer_of_at_least_one(n: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^NoRepeatNGram: n must be an integer of at least 1, got"):
        dk.NoRepeatNGram(n)


@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_no_repeat_ngram_keeps_the_contract_of_processors(n: int) -> None:
    check_processor(dk.NoRepeatNGram(n), vocab=4, max_examples=20)


@LAWS
@given(calls(outside=2), st.integers(1, 5))
def test_no_repeat_ngram_is_hugging_faces(call: Call, n: int) -> None:
    assert_same(NoRepeatNGramLogitsProcessor(n), dk.NoRepeatNGram(n), call)


@LAWS
@given(st.integers(2, 4).flatmap(cases), st.integers(1, 4))
def test_no_repeat_ngram_with_left_padding_is_hugging_faces_row_by_row_without(
    case: tuple[dk.History, Tensor], n: int
) -> None:
    history, scores = case
    expected = [
        NoRepeatNGramLogitsProcessor(n)(tokens[valid][None], row[None].clone())[0].tolist()
        for tokens, valid, row in zip(history.tokens, history.valid, scores, strict=True)
    ]
    assert expected == dk.NoRepeatNGram(n).process(history, scores).tolist()
