from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MinNewTokensLengthLogitsProcessor

import decodekit as dk
from decodekit.testing import MarkovModel, check_processor
from tests.processors.alone import FEW, Values, assert_each_has_its_own, batches
from tests.processors.parity import LAWS, Call, calls

BANNED = -torch.inf


def history_of(text: list[list[int]], room: int = 4) -> dk.History:
    """The text as a prompt, with room to go on."""
    return dk.Prompt.from_ids(text).history(len(text[0]) + room, 1)


def test_min_new_tokens_bans_the_end_ids_until_enough_new_tokens_are_there() -> None:
    processor, history = dk.MinNewTokens(2, end_ids=[0, 2]), history_of([[1, 1, 1]])
    memory, out = processor.init(history), []
    for _ in range(4):
        processed, memory = processor.apply(history, torch.zeros(1, 4), memory)
        out.append(processed[0].tolist())
        history = history.append(torch.tensor([1]))
    free = [0.0, 0.0, 0.0, 0.0]
    assert [[BANNED, 0.0, BANNED, 0.0], [BANNED, 0.0, BANNED, 0.0], free, free] == out


def test_min_new_tokens_of_zero_changes_nothing() -> None:
    history, scores = history_of([[1]]), torch.tensor([[1.0, 2.0]])
    processor = dk.MinNewTokens(0, end_ids=0)
    assert scores.tolist() == processor.apply(history, scores, processor.init(history))[0].tolist()


def test_min_new_tokens_does_not_count_a_prompts_own_length_in_a_padded_batch() -> None:
    # Ends at once unless it must not: every text is one token longer than the least.
    model = MarkovModel([[1.0, 0.0], [0.75, 0.25]], end_ids=(0,))
    out = dk.decode(model, [[1, 1, 1], [1]], dk.Greedy(), dk.MinNewTokens(3, end_ids=0), max_new_tokens=9)
    assert out.hypotheses() == [[[1, 1, 1, 0]], [[1, 1, 1, 0]]]


def test_min_new_tokens_takes_one_id_or_several() -> None:
    assert dk.MinNewTokens(3, end_ids=5).end_ids == (5,)
    assert dk.MinNewTokens(3, end_ids=[5, 6]).end_ids == (5, 6)
    assert dk.MinNewTokens(3, end_ids=()).end_ids == ()


@pytest.mark.parametrize("least", [-1, 1.0, 2.5, True, "3", None])
def test_min_new_tokens_refuses_a_number_that_is_not_an_integer_of_at_least_zero(least: Any) -> None:  # noqa: ANN401
    message = r"^MinNewTokens: min_new_tokens must be an integer of at least 0, got"
    with pytest.raises(ValueError, match=message):
        dk.MinNewTokens(least, end_ids=0)


@pytest.mark.parametrize("end_ids", [-1, [0, -1], [1.0], ["a"], "a", [None], [True], True])
def test_min_new_tokens_refuses_end_ids_that_are_not_ids(end_ids: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^MinNewTokens: token ids must be integers of at least 0, got"):
        dk.MinNewTokens(1, end_ids=end_ids)


def test_min_new_tokens_refuses_an_end_id_outside_the_vocabulary_when_applied() -> None:
    processor, history = dk.MinNewTokens(1, end_ids=4), history_of([[1]])
    message = r"^MinNewTokens: token ids must be below the vocabulary size 4, got 4"
    with pytest.raises(ValueError, match=message):
        processor.apply(history, torch.zeros(1, 4), processor.init(history))


@pytest.mark.parametrize("least", [0, 1, 3, 99])
def test_min_new_tokens_keeps_the_contract_of_processors(least: int) -> None:
    check_processor(dk.MinNewTokens(least, end_ids=[0, 7]), max_examples=20)


@LAWS
@given(calls(), st.integers(0, 6), st.sets(st.integers(0, 8)), st.integers(0, 2**31))
def test_min_new_tokens_is_hugging_faces_at_every_step(
    call: Call, least: int, ids: set[int], seed: int
) -> None:
    tokens, scores = call
    vocab = scores.shape[1]
    end_ids = torch.tensor([end_id for end_id in ids if end_id < vocab], dtype=torch.long)
    theirs = MinNewTokensLengthLogitsProcessor(tokens.shape[1], least, end_ids)
    ours = dk.MinNewTokens(least, end_ids=end_ids.tolist())
    generator = torch.Generator().manual_seed(seed)
    history = history_of(tokens.tolist(), room=8)
    memory = ours.init(history)
    for _ in range(8):
        written = history.tokens[:, : int(history.position)]
        out, memory = ours.apply(history, scores, memory)
        assert theirs(written, scores.clone()).tolist() == out.tolist()
        history = history.append(torch.randint(0, vocab, (len(tokens),), generator=generator))


def test_min_new_tokens_per_prompt_keeps_the_contract_of_processors() -> None:
    check_processor(lambda numbers: dk.MinNewTokens(numbers, end_ids=[0, 7]), max_examples=20)


@FEW
@given(batches(st.integers(0, 5)), st.integers(0, 2**31))
def test_min_new_tokens_of_every_prompt_is_what_it_is_alone(
    case: tuple[list[list[int]], Values], seed: int
) -> None:
    batch, values = case
    assert_each_has_its_own(lambda least: dk.MinNewTokens(least, end_ids=[0, 6]), batch, values, seed)


def test_min_new_tokens_per_prompt_ends_each_prompt_when_it_may() -> None:
    # Ends at once unless it must not.
    model = MarkovModel([[1.0, 0.0], [0.75, 0.25]], end_ids=(0,))
    processor = dk.MinNewTokens([3, 0], end_ids=0)
    out = dk.decode(model, [[1, 1, 1], [1]], dk.Greedy(), processor, max_new_tokens=9)
    assert out.hypotheses() == [[[1, 1, 1, 0]], [[0]]]


def test_min_new_tokens_per_prompt_refuses_what_is_not_an_integer_of_at_least_zero() -> None:
    message = r"^MinNewTokens: min_new_tokens must be an integer of at least 0, got -1"
    with pytest.raises(ValueError, match=message):
        dk.MinNewTokens([2, -1], end_ids=0)


def test_min_new_tokens_refuses_numbers_that_are_not_one_per_prompt() -> None:
    message = r"^MinNewTokens: min_new_tokens must be one number, or one for each prompt, got 2 for 1 prompts"
    with pytest.raises(dk.DecodekitError, match=message):
        dk.MinNewTokens([1, 2], end_ids=0).init(history_of([[1]]))
