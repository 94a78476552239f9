from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import EncoderNoRepeatNGramLogitsProcessor

import decodekit as dk
from decodekit.core.history import Source
from decodekit.testing import check_processor
from tests.processors.parity import LAWS, Call, assert_same_at_every_step, calls, history_of, step_scores


def banned(
    processor: dk.EncoderNoRepeatNGram,
    history: dk.History,
    emitted: tuple[list[int], ...] = (),
    vocab: int = 5,
) -> list[list[list[int]]]:
    """The banned ids, for every step and row."""
    out = step_scores(processor, history, torch.zeros(len(history.tokens), vocab), list(emitted))
    return [[[token for token, score in enumerate(row) if score != 0] for row in step] for step in out]


def test_encoder_no_repeat_ngram_bans_what_would_complete_an_n_gram_of_the_source() -> None:
    processor = dk.EncoderNoRepeatNGram(2, source=[1, 2, 1, 3])
    assert banned(processor, history_of([[0, 1]]), ([2], [3], [1])) == [[[2, 3]], [[1]], [[]], [[2, 3]]]
    longer = dk.EncoderNoRepeatNGram(3, source=[1, 2, 1, 3])
    assert banned(longer, history_of([[1, 2]]), ([1], [1])) == [[[1]], [[3]], [[]]]


def test_encoder_no_repeat_ngram_of_one_bans_every_token_of_the_source() -> None:
    assert banned(dk.EncoderNoRepeatNGram(1, source=[1, 3]), history_of([[0]])) == [[[1, 3]]]


def test_encoder_no_repeat_ngram_of_the_prompt_does_not_count_new_tokens() -> None:
    # 0 1 is the prompt's; 1 0 and 0 2 are new, across its end and after it.
    out = banned(dk.EncoderNoRepeatNGram(2), history_of([[0, 1]], room=5), ([0], [2], [0], [1]))
    assert out == [[[]], [[1]], [[]], [[1]], [[]]]


def test_encoder_no_repeat_ngram_bans_nothing_where_the_text_or_the_source_is_too_short() -> None:
    assert banned(dk.EncoderNoRepeatNGram(3, source=[0, 0, 0]), history_of([[0]], room=1), ([0],)) == [
        [[]],
        [[0]],
    ]
    assert banned(dk.EncoderNoRepeatNGram(3, source=[0, 0]), history_of([[0, 0]])) == [[[]]]
    assert banned(dk.EncoderNoRepeatNGram(9, source=[0] * 9), history_of([[0, 0]], room=1)) == [[[]]]


def test_encoder_no_repeat_ngram_takes_the_encoders_input_without_its_padding() -> None:
    source = Source(
        torch.tensor([[0, 2, 0, 3], [0, 1, 0, 0]]), torch.tensor([[True] * 4, [True, True, False, False]])
    )
    history = replace(history_of([[0], [0]], rows_per_prompt=2), source=source)
    assert banned(dk.EncoderNoRepeatNGram(2), history) == [[[2, 3], [2, 3], [1], [1]]]


def test_encoder_no_repeat_ngram_takes_a_source_per_prompt_of_any_length() -> None:
    processor = dk.EncoderNoRepeatNGram(2, source=[[0, 1, 0, 2], [], [0, 3]])
    assert banned(processor, history_of([[0]] * 3)) == [[[1, 2], [], [3]]]


def test_encoder_no_repeat_ngram_does_not_count_padding() -> None:
    # Padding has the id 0.
    out = banned(dk.EncoderNoRepeatNGram(3), history_of([[0, 1, 2, 0, 1], [1, 2]]), ([2, 1], [0, 2]))
    assert out == [[[2], []], [[0], []], [[1], []]]
    given = dk.EncoderNoRepeatNGram(3, source=[0, 1, 2])
    assert banned(given, history_of([[0, 1], [1]])) == [[[2], []]]


@pytest.mark.parametrize("n", [0, -1, 1.0, True, "2", None])
def test_encoder_no_repeat_ngram_refuses_a_length_that_is_not_an_integer_of_at_least_one(n: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^EncoderNoRepeatNGram: n must be an integer of at least 1, got"):
        dk.EncoderNoRepeatNGram(n)


@pytest.mark.parametrize("source", [[-1], [1.0], [[0], [-1]], ["a"]])
def test_encoder_no_repeat_ngram_refuses_sources_that_are_not_ids(source: Any) -> None:  # noqa: ANN401
    message = r"^EncoderNoRepeatNGram: token ids must be integers of at least 0, got"
    with pytest.raises(ValueError, match=message):
        dk.EncoderNoRepeatNGram(2, source=source)


def test_encoder_no_repeat_ngram_refuses_other_numbers_of_sources_than_of_prompts() -> None:
    message = (
        r"^EncoderNoRepeatNGram: source must be one for all prompts, or one for each, got 2 for 3 prompts"
    )
    with pytest.raises(ValueError, match=message):
        dk.EncoderNoRepeatNGram(2, source=[[0], [1]]).init(history_of([[0]] * 3))


@pytest.mark.parametrize("source", [None, [0, 5, 0, 2, 5, 1]])
@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_encoder_no_repeat_ngram_keeps_the_contract_of_processors(n: int, source: Any) -> None:  # noqa: ANN401
    check_processor(dk.EncoderNoRepeatNGram(n, source), max_examples=20)


def test_encoder_no_repeat_ngram_per_prompt_keeps_the_contract_of_processors() -> None:
    check_processor(
        lambda prompts: dk.EncoderNoRepeatNGram(2, source=[list(range(n, 9)) for n in prompts]),
        max_examples=20,
    )


@LAWS
@given(calls(), st.integers(1, 4), st.integers(1, 12), st.integers(0, 2**31))
def test_encoder_no_repeat_ngram_is_hugging_faces_at_every_step(
    call: Call, n: int, length: int, seed: int
) -> None:
    tokens, scores = call
    rows, vocab = scores.shape
    source = torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(seed + 1))
    for given_ids, expected in ((source, source), (None, tokens)):
        theirs = EncoderNoRepeatNGramLogitsProcessor(n, expected)
        assert_same_at_every_step(theirs, dk.EncoderNoRepeatNGram(n, source=given_ids), call, seed, steps=4)


@LAWS
@given(calls(), st.integers(1, 3), st.integers(1, 3))
def test_encoder_no_repeat_ngram_with_several_rows_a_prompt_is_hugging_faces(
    call: Call, n: int, beams: int
) -> None:
    tokens, scores = call
    source, scores = tokens.flip(1), scores.repeat_interleave(beams, 0).flip(0)
    history = history_of(tokens.tolist(), room=0, rows_per_prompt=beams)
    theirs = EncoderNoRepeatNGramLogitsProcessor(n, source)
    ours = dk.EncoderNoRepeatNGram(n, source=source)
    assert theirs(history.tokens, scores.clone()).tolist() == step_scores(ours, history, scores, [])[0]
