from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MinLengthLogitsProcessor

import decodekit as dk
from decodekit.testing import MarkovModel, check_processor
from tests.processors.parity import LAWS, Call, assert_same, assert_same_at_every_step, calls, history_of

BANNED = -torch.inf
# Ends at once unless it must not: every text is one token longer than the least.
ENDS = MarkovModel([[1.0, 0.0], [0.75, 0.25]], end_ids=(0,))


def test_min_length_bans_the_end_ids_until_the_text_is_long_enough() -> None:
    processor = dk.MinLength(3, end_ids=[0, 2])
    texts = [torch.ones(1, length, dtype=torch.long) for length in (1, 2, 3, 4)]
    short, long = [[BANNED, 0.0, BANNED, 0.0]], [[0.0, 0.0, 0.0, 0.0]]
    assert [short, short, long, long] == [processor(text, torch.zeros(1, 4)).tolist() for text in texts]


def test_min_length_counts_the_prompt_too() -> None:
    out = dk.decode(ENDS, [1, 1, 1], dk.Greedy(), dk.MinLength(5, end_ids=0), max_new_tokens=9)
    assert out.hypotheses() == [[[1, 1, 0]]]


def test_min_length_does_not_count_padding_so_that_a_batch_gives_what_each_prompt_alone_gives() -> None:
    prompts = [[1, 1, 1], [1]]
    processor = dk.MinLength(3, end_ids=0)
    batch = dk.decode(ENDS, prompts, dk.Greedy(), processor, max_new_tokens=9)
    alone = [dk.decode(ENDS, prompt, dk.Greedy(), processor, max_new_tokens=9) for prompt in prompts]
    assert batch.hypotheses() == [[[0]], [[1, 1, 0]]]
    assert batch.hypotheses() == [out.hypotheses()[0] for out in alone]


def test_min_length_may_differ_by_prompt() -> None:
    out = dk.MinLength([1, 2], end_ids=0).process(history_of([[1], [1]]), torch.zeros(2, 2))
    assert out.tolist() == [[0.0, 0.0], [BANNED, 0.0]]


@pytest.mark.parametrize("least", [-1, 1.0, 2.5, True, "3", None, [1, -1], [2.0]])
def test_min_length_refuses_a_number_that_is_not_an_integer_of_at_least_zero(least: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^MinLength: min_length must be an integer of at least 0, got"):
        dk.MinLength(least, end_ids=0)


@pytest.mark.parametrize("end_ids", [-1, [0, -1], [1.0], "a", [None], True])
def test_min_length_refuses_end_ids_that_are_not_ids(end_ids: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^MinLength: token ids must be integers of at least 0, got"):
        dk.MinLength(1, end_ids=end_ids)


def test_min_length_refuses_an_end_id_outside_the_vocabulary_when_applied() -> None:
    with pytest.raises(ValueError, match=r"^MinLength: token ids must be below the vocabulary size 4, got 4"):
        dk.MinLength(1, end_ids=4)(torch.tensor([[1]]), torch.zeros(1, 4))


@pytest.mark.parametrize("least", [0, 3, 6, 99])
def test_min_length_keeps_the_contract_of_processors(least: int) -> None:
    check_processor(dk.MinLength(least, end_ids=[0, 7]), max_examples=20)


def test_min_length_per_prompt_keeps_the_contract_of_processors() -> None:
    check_processor(lambda prompts: dk.MinLength([3 + n for n in prompts], end_ids=2), max_examples=20)


@LAWS
@given(calls(), st.integers(0, 12), st.sets(st.integers(0, 8)), st.integers(0, 2**31))
def test_min_length_is_hugging_faces(call: Call, least: int, ids: set[int], seed: int) -> None:
    end_ids = [end_id for end_id in ids if end_id < call[1].shape[1]]
    theirs = MinLengthLogitsProcessor(least, torch.tensor(end_ids, dtype=torch.long))
    assert_same(theirs, dk.MinLength(least, end_ids=end_ids), call)
    assert_same_at_every_step(theirs, dk.MinLength(least, end_ids=end_ids), call, seed)
