"""A model that emits given ids, over a readable vocabulary."""

from collections.abc import Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

import decodekit as dk
from decodekit.core.vocabulary import Tokenizer


class Pieces:
    """A tokenizer whose id i is the i-th piece; bytes that are no character read as U+FFFD."""

    def __init__(self, pieces: Sequence[str | bytes]) -> None:
        self.pieces = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        del add_special_tokens
        return [self.pieces.index(letter.encode()) for letter in text]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        del skip_special_tokens
        return b"".join(self.pieces[token] for token in token_ids).decode(errors="replace")


class Scripted:
    """Emits the given ids, one list per prompt, at any history; every other id is unlikely.

    Args:
        scripts: Ids to emit after each prompt; the last id is repeated.
        vocab: Number of ids.
        tokenizer: Reads them.
    """

    def __init__(self, scripts: list[list[int]], vocab: int, tokenizer: Tokenizer | None = None) -> None:
        self.scripts = scripts
        self.vocab = vocab
        self.vocabulary = dk.Vocabulary(size=vocab, tokenizer=tokenizer)

    def start(
        self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple["SecondModelState", Float32[Tensor, "rows vocab"]]:
        del prompt, capacity
        reading = SecondModelState(self, rows_per_prompt)
        return reading, reading.logits()


class SecondModelState:
    """A run of a scripted model: it knows nothing but how far it is."""

    def __init__(self, model: Scripted, rows: int) -> None:
        self.model = model
        self.rows = rows
        self.step = 0

    def logits(self) -> Float32[Tensor, "rows vocab"]:
        tokens = [script[min(self.step, len(script) - 1)] for script in self.model.scripts]
        logits = torch.zeros(len(tokens), self.model.vocab)
        return logits.scatter(1, torch.tensor(tokens)[:, None], 20.0).repeat_interleave(self.rows, 0)

    def advance(
        self,
        tokens: Int64[Tensor, " rows"],  # noqa: ARG002 - the script goes on
        source_rows: Int64[Tensor, " rows"] | None,  # noqa: ARG002
    ) -> Float32[Tensor, "rows vocab"]:
        self.step += 1
        return self.logits()


def script_of(pieces: Sequence[str | bytes]) -> tuple[Scripted, int]:
    """A model that emits some pieces, and their number."""
    return Scripted([list(range(len(pieces)))], len(pieces), Pieces(pieces)), len(pieces)
