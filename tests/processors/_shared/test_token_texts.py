import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

import decodekit as dk
from decodekit.processors._shared.token_texts import token_texts


class Words:
    """Decodes to words; the first word of a text loses the space before it."""

    words = ("", "a", " b", "\ufffd")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        raise NotImplementedError

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(self.words[token] for token in token_ids).removeprefix(" ")


def test_a_byte_level_vocabulary_is_read_byte_by_byte() -> None:
    vocabulary = dk.load().vocabulary
    texts = token_texts("X", vocabulary)
    assert len(texts) == 4096
    assert texts[0] == b""  # special
    assert {bytes([byte]) for byte in range(256)} <= set(texts)
    decode = dk.load().tokenizer.decode
    assert [decode([token]) for token in range(1, 4096)] == [
        text.decode(errors="replace") for text in texts[1:]
    ]
    for text in ("caf\u00e9 \u201cyes\u201d", "\U0001f9d9\u200d\u2642", "a\u00a0b\tc\n\u00ad"):
        assert text.encode() == b"".join(texts[token] for token in vocabulary.ids(text))


def test_a_sentence_piece_vocabulary_has_spaces_and_single_bytes() -> None:
    tokens = ["<unk>", "<s>", "<0xE2>", "<0x0A>", "\u2581the", "e\u0301", "<0xZZ>"]
    backend = Backend(
        models.BPE({token: place for place, token in enumerate(tokens)}, [], byte_fallback=True)
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")  # noqa: S106
    tokenizer.add_tokens(["  extra"])
    expected = (b"", b"", b"\xe2", b"\n", b" the", "e\u0301".encode(), b"<0xZZ>", b"  extra", b"")
    assert expected == token_texts("X", dk.Vocabulary(size=9, tokenizer=tokenizer))


def test_an_id_of_any_other_tokenizer_has_the_text_that_it_adds_to_itself() -> None:
    # Half a character has no text of its own.
    assert token_texts("X", dk.Vocabulary(size=4, tokenizer=Words())) == (b"", b"a", b" b", b"")


def test_a_vocabulary_without_tokenizer_or_size_is_refused() -> None:
    with pytest.raises(dk.DecodekitError, match=r"^X: the vocabulary must have a tokenizer"):
        token_texts("X", dk.Vocabulary(size=4))
    with pytest.raises(dk.DecodekitError, match=r"^X: the vocabulary must have a size"):
        token_texts("X", dk.Vocabulary(tokenizer=Words()))
