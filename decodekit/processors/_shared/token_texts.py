"""The bytes of every id of a vocabulary."""

import json
import re
from typing import Any

from decodekit.core.vocabulary import Tokenizer, Vocabulary
from decodekit.errors import DecodekitError

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")

# The byte of each character in byte-level vocabularies: a visible Latin-1 character is its own byte, and the
# characters of code 256 and above represent the other bytes.
_VISIBLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_HIDDEN = sorted(set(range(256)) - set(_VISIBLE))
_ALPHABET = {chr(byte): byte for byte in _VISIBLE} | {chr(256 + n): byte for n, byte in enumerate(_HIDDEN)}


def token_texts(who: str, vocabulary: Vocabulary) -> tuple[bytes, ...]:
    """Return the bytes of every id; none for special tokens and for ids without a text of their own.

    Bytes, because a token may hold only a part of a character. For byte-level and SentencePiece tokenizers
    they come from the vocabulary, for any other tokenizer from decoding.

    Raises:
        DecodekitError: If there is no tokenizer, or one of unknown size.
    """
    tokenizer = vocabulary.tokenizer
    if tokenizer is None:
        raise DecodekitError(f"{who}: the vocabulary must have a tokenizer. Use HFModel(model, tokenizer).")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        described = json.loads(backend.to_str())
        steps = _steps(described["decoder"])
        kinds = {step["type"] for step in steps}
        if kinds & {"ByteLevel", "ByteFallback", "Metaspace"}:
            texts = {
                id_: _byte_level(token) if "ByteLevel" in kinds else _sentence_piece(token, kinds)
                for token, id_ in backend.get_vocab(with_added_tokens=True).items()
            }
            texts |= {added["id"]: added["content"].encode() for added in described["added_tokens"]}
            special = {added["id"] for added in described["added_tokens"] if added["special"]}
            special |= set(getattr(tokenizer, "all_special_ids", ()))
            size = max(max(texts, default=0) + 1, vocabulary.size or 0)
            return tuple(b"" if id_ in special else texts.get(id_, b"") for id_ in range(size))
    if vocabulary.size is None:
        raise DecodekitError(f"{who}: the vocabulary must have a size. Pass size=...")
    return tuple(_added_by(tokenizer, id_) for id_ in range(vocabulary.size))


def _steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    """List the steps in which a tokenizer decodes tokens to text."""
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _steps(part)]
    return [decoder]


def _byte_level(token: str) -> bytes:
    if all(character in _ALPHABET for character in token):
        return bytes(_ALPHABET[character] for character in token)
    return token.encode()


def _sentence_piece(token: str, kinds: set[str]) -> bytes:
    byte = _BYTE.fullmatch(token) if "ByteFallback" in kinds else None
    return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()


def _added_by(tokenizer: Tokenizer, id_: int) -> bytes:
    """Return the bytes that an id adds after itself: some tokenizers drop the first word's space."""
    once = tokenizer.decode([id_], skip_special_tokens=True)
    twice = tokenizer.decode([id_, id_], skip_special_tokens=True)
    added = twice[len(once) :] if twice.startswith(once) else ""
    return b"" if "\ufffd" in added else added.encode()
