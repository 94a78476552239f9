from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import NoBadWordsLogitsProcessor

import decodekit as dk
from decodekit.testing import MarkovModel, check_processor
from tests.processors.parity import LAWS, Call, assert_same, calls, history_of

BANNED = -torch.inf


def banned(processor: dk.BadWords, text: list[int], vocab: int = 4) -> list[int]:
    """The banned ids."""
    out = processor(torch.tensor([text]), torch.zeros(1, vocab))
    return torch.where(out[0] == BANNED)[0].tolist()


def test_bad_words_bans_the_last_token_of_a_word_where_the_text_ends_in_the_rest() -> None:
    processor = dk.BadWords([[1, 2], [0, 1, 3], [0]])
    assert banned(processor, [0, 1]) == [0, 2, 3]
    assert banned(processor, [1, 1]) == [0, 2]
    assert banned(processor, [1, 0]) == [0]


def test_bad_words_never_emits_a_word_in_a_run() -> None:
    model = MarkovModel([[0.1, 0.6, 0.3], [0.2, 0.1, 0.7], [0.5, 0.4, 0.1]])
    assert dk.decode(model, [0], dk.Greedy(), max_new_tokens=3).hypotheses() == [[[1, 2, 0]]]
    out = dk.decode(model, [0], dk.Greedy(), dk.BadWords([[1, 2, 0]]), max_new_tokens=3)
    assert out.hypotheses() == [[[1, 2, 1]]]


def test_bad_words_does_not_count_padding() -> None:
    # Padding has the id 0.
    out = dk.BadWords([[0, 1, 2]]).process(history_of([[0, 1], [1]]), torch.zeros(2, 3))
    assert out.tolist() == [[0.0, 0.0, BANNED], [0.0, 0.0, 0.0]]


def test_bad_words_leaves_end_ids_allowed_that_are_a_word_by_themselves() -> None:
    assert banned(dk.BadWords([[0], [2], [1, 0]], end_ids=0), [3]) == [2]
    assert banned(dk.BadWords([[0], [2], [1, 0]], end_ids=[0, 2]), [1]) == [0]


def test_bad_words_of_none_bans_nothing() -> None:
    assert banned(dk.BadWords([]), [0]) == []
    assert banned(dk.BadWords([[1]], end_ids=1), [0]) == []


def test_bad_words_bans_what_is_infinitely_likely() -> None:
    out = dk.BadWords([[0]])(torch.tensor([[1]]), torch.tensor([[torch.inf, 1.0]]))
    assert out.tolist() == [[BANNED, 1.0]]


def test_bad_words_takes_a_lone_id_for_a_word() -> None:
    assert dk.BadWords([2, [1, 0]]) == dk.BadWords([(2,), (1, 0)])


@pytest.mark.parametrize("words", [[[]], [[1], []]])
def test_bad_words_refuses_an_empty_word(words: Any) -> None:  # noqa: ANN401
    with pytest.raises(
        ValueError, match=r"^BadWords: a sequence must hold at least one id, got an empty one"
    ):
        dk.BadWords(words)


@pytest.mark.parametrize("words", [3, "ab", None])
def test_bad_words_refuses_what_is_no_list_of_words(words: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^BadWords: words must be sequences of ids, got"):
        dk.BadWords(words)


@pytest.mark.parametrize("words", [[[-1]], [[1, 1.0]], ["ab"], [[None]], [[True]]])
def test_bad_words_refuses_ids_that_are_not_ids(words: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^BadWords: token ids must be integers of at least 0, got"):
        dk.BadWords(words)


@pytest.mark.parametrize("end_ids", [-1, [1.0], "a", True])
def test_bad_words_refuses_end_ids_that_are_not_ids(end_ids: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^BadWords: token ids must be integers of at least 0, got"):
        dk.BadWords([[1]], end_ids=end_ids)


def test_bad_words_refuses_an_id_outside_the_vocabulary_when_applied() -> None:
    with pytest.raises(ValueError, match=r"^BadWords: token ids must be below the vocabulary size 4, got 5"):
        banned(dk.BadWords([[5, 1]]), [0])


@pytest.mark.parametrize("words", [[], [[2]], [[2, 3], [1], [0, 0, 0, 1]], [[0] * 12]])
def test_bad_words_keeps_the_contract_of_processors(words: Any) -> None:  # noqa: ANN401
    check_processor(dk.BadWords(words), max_examples=20)


@LAWS
@given(
    calls(),
    st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=3), min_size=1, max_size=8),
    st.none() | st.lists(st.integers(0, 8), min_size=1, max_size=2),
)
def test_bad_words_is_hugging_faces(call: Call, words: list[list[int]], ends: list[int] | None) -> None:
    vocab = call[1].shape[1]
    # The last word is longer than one token: where end ids leave no word at all, Hugging Face raises.
    words = [*([token % vocab for token in word] for word in words), [0, 1]]

    def theirs(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = NoBadWordsLogitsProcessor(words, ends)(tokens, scores)
        return out.masked_fill(out.isnan(), BANNED)  # plus infinity and a ban

    assert_same(theirs, dk.BadWords(words, end_ids=ends or ()), call)
