"""Drafts copied from the prompt and the continuation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import decodekit as dk
from decodekit.decoders.speculative.drafts.prompt_lookup import NGramIndex
from decodekit.testing import HashModel
from tests.equivalence.families import wrap


@pytest.mark.parametrize(
    ("text", "proposed"),
    [
        ([1, 2, 3, 1], [2, 3, 1]),
        ([1, 2, 9, 1, 2], [9, 1, 2]),
        ([5, 2, 7, 1, 2, 8, 5, 2], [7, 1, 2]),  # a match of two tokens beats the latest match of one
        ([2, 7, 2, 8, 2], [8, 2, 8]),  # the latest of two matches; the proposal continues with its own tokens
        ([4, 4], [4, 4, 4]),
        ([1, 2, 3], []),
        ([1], []),
    ],
)
def test_the_tokens_after_the_longest_matching_ngram_are_proposed(
    text: list[int], proposed: list[int]
) -> None:
    assert NGramIndex(2, text).following(3) == proposed


def full_search(text: list[int], max_ngram: int, number: int) -> list[int]:
    """The same by searching the whole sequence."""
    for length in range(min(max_ngram, len(text)), 0, -1):
        for place in range(len(text) - 1, length - 1, -1):
            if text[place - length : place] == text[len(text) - length :]:
                long = list(text)
                for column in range(number):
                    long.append(long[place + column])
                return long[len(text) :]
    return []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(1, 4), st.integers(1, 5))
def test_the_index_equals_a_full_search_while_the_sequence_grows(
    text: list[int], max_ngram: int, number: int
) -> None:
    index = NGramIndex(max_ngram, text[:1])
    for length, token in enumerate(text[1:], 1):
        assert full_search(text[:length], max_ngram, number) == index.following(number)
        index.append(token)
    assert full_search(text, max_ngram, number) == index.following(number)


def test_it_searches_the_continuation_and_keeps_rows_apart() -> None:
    model = HashModel(5, scale=1.0)
    together = dk.decode(model, [[1, 2, 1], [3]], dk.Speculative(dk.PromptLookup()), max_new_tokens=30)
    for number, prompt in enumerate(([1, 2, 1], [3])):
        alone = dk.decode(model, [prompt], dk.Speculative(dk.PromptLookup()), max_new_tokens=30)
        assert isinstance(alone.report, dk.Acceptance)
        assert isinstance(together.report, dk.Acceptance)
        assert torch.equal(alone.report.drafted[0], together.report.drafted[number])
        assert torch.equal(alone.report.accepted[0], together.report.accepted[number])
        assert int(alone.report.drafted) > 0


def test_the_source_of_an_encoder_decoder_is_searched_too() -> None:
    draft = dk.PromptLookup(1)
    prompt = dk.Prompt.of([[9, 4, 11, 12], [4, 20]], wrap("t5").vocabulary)
    session = draft.start(wrap("t5"), prompt, rows_per_prompt=1, capacity=9)
    # The decoder begins with 4, which the sources hold as well.
    assert session.propose([[], []], [2, 1], lambda *_: (torch.empty(0), None)).tokens == [[11, 12], [20]]


@pytest.mark.parametrize("max_ngram", [0, -1, 1.5, True])
def test_max_ngram_must_be_an_integer_of_at_least_one(max_ngram: int) -> None:
    with pytest.raises(ValueError, match="PromptLookup: max_ngram must be an integer of at least 1"):
        dk.PromptLookup(max_ngram)
