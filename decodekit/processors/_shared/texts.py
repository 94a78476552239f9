"""Texts, as detectors take them."""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from decodekit.core.validation import is_count, plain

# One text or several, as ids.
Texts = Iterable[int] | Iterable[Sequence[int]] | Int64[Tensor, " length"] | Int64[Tensor, "batch length"]


def read_texts(who: str, texts: Texts) -> list[list[int]]:
    """One text or several, as lists of ids. Raises unless every id is an integer of at least 0."""
    given: list[Any] = [plain(text) for text in plain(texts)]
    several = [given] if given and is_count(given[0], 0) else given
    if not all(isinstance(text, Iterable) for text in several):
        raise ValueError(f"{who}: token ids must be integers of at least 0, got {several!r:.80}.")
    read = [[plain(token) for token in text] for text in several]
    for token in (token for text in read for token in text):
        if not is_count(token, 0):
            raise ValueError(f"{who}: token ids must be integers of at least 0, got {token!r}.")
    if not read:
        raise ValueError(f"{who}: texts must be at least one, got none.")
    return read
