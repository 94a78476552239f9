import dataclasses

import pytest

import decodekit as dk

BOS = 0


class Words:
    """A tokenizer of words that know the space before them, and special `<s>`.

    Like SentencePiece it adds a space in front of a text, and drops the one in front of the ids that it
    is given to decode.
    """

    def __init__(self, *, bos: bool = False, merges: bool = False) -> None:
        self.words = ["<s>", " a", " b", " c", "s", " s", *([" cs"] if merges else [])]
        self.bos = bos

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids = [BOS] if self.bos and add_special_tokens else []
        rest = text if text.startswith(" ") or not text else f" {text}"
        while rest:
            word = max((word for word in self.words if rest.startswith(word)), key=len)
            ids.append(self.words.index(word))
            rest = rest[len(word) :]
        return ids

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        kept = [token for token in token_ids if not (skip_special_tokens and token == BOS)]
        return "".join(self.words[token] for token in kept).removeprefix(" ")


class Bytes:
    """A tokenizer of single bytes: one character may need several ids."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        del add_special_tokens
        return list(text.encode())

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        del skip_special_tokens
        return bytes(token_ids).decode(errors="replace")


def test_nothing_need_be_known() -> None:
    vocabulary = dk.Vocabulary()
    assert dataclasses.astuple(vocabulary) == (None, (), None, None, None, None)


def test_a_vocabulary_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        dk.Vocabulary().size = 3  # type: ignore[misc]


def test_a_string_needs_a_tokenizer_and_the_message_says_what_to_do() -> None:
    with pytest.raises(dk.PromptError, match=r"^Prompt: a string needs a tokenizer.* Pass token ids, or"):
        dk.Vocabulary().ids("a")
    with pytest.raises(dk.PromptError, match=r"^Prompt: a string needs a tokenizer.* Pass token ids, or"):
        dk.Vocabulary().continuation_ids(None, [1], "a")


def test_there_is_no_text_without_a_tokenizer() -> None:
    assert dk.Vocabulary().text([1], [2]) is None


def test_a_prompt_has_the_special_tokens_and_a_continuation_has_not() -> None:
    vocabulary = dk.Vocabulary(tokenizer=Words(bos=True))
    assert vocabulary.ids("a b") == [BOS, 1, 2]
    assert vocabulary.continuation_ids(None, [BOS, 1, 2], " c") == [3]


def test_a_continuation_keeps_the_space_that_decoding_it_alone_would_drop() -> None:
    vocabulary = dk.Vocabulary(tokenizer=Words())
    assert vocabulary.text([1], [2, 3]) == " b c"
    assert vocabulary.text([], [2, 3]) == "b c"


def test_special_tokens_are_left_out_of_the_text() -> None:
    vocabulary = dk.Vocabulary(tokenizer=Words())
    assert vocabulary.text([BOS, 1], [2, BOS]) == " b"
    assert vocabulary.text([BOS], [1]) == "a"


def test_prompt_and_continuation_read_as_one_text() -> None:
    vocabulary, ids = dk.Vocabulary(tokenizer=Words()), [1, 2, 4, 3]
    whole = vocabulary.text([], ids)
    assert [whole] * 4 == [
        f"{vocabulary.text([], ids[:cut])}{vocabulary.text(ids[:cut], ids[cut:])}" for cut in range(4)
    ]


def test_a_character_begun_in_the_prompt_does_not_break_the_text() -> None:
    vocabulary = dk.Vocabulary(tokenizer=Bytes())
    euro = list("€".encode())
    assert vocabulary.text(list(b"a"), [*euro, 98]) == "€b"
    # The prompt reads "a" and a replacement character, with which the whole text does not begin.
    assert vocabulary.text([97, *euro[:1]], [*euro[1:], 98]) == Bytes().decode(
        [*euro[1:], 98], skip_special_tokens=True
    )


def test_a_continuation_is_read_as_in_the_whole_text() -> None:
    vocabulary = dk.Vocabulary(tokenizer=Words())
    assert vocabulary.continuation_ids("a c", [1, 3], "s b") == [4, 2]
    assert vocabulary.continuation_ids(None, [1, 3], "s b") == [5, 2]  # by itself, with a space


def test_a_continuation_that_would_change_the_prompts_ids_is_read_by_itself() -> None:
    vocabulary = dk.Vocabulary(tokenizer=Words(merges=True))
    assert vocabulary.ids("a cs") == [1, 6]  # not [1, 3, 4]
    assert vocabulary.continuation_ids("a c", [1, 3], "s") == [5]


def test_an_empty_continuation_has_no_ids() -> None:
    vocabulary = dk.Vocabulary(tokenizer=Words(bos=True))
    assert vocabulary.continuation_ids("a", [BOS, 1], "") == []
    assert vocabulary.continuation_ids(None, [BOS, 1], "") == []
