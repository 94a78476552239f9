"""Parts of watermark detectors: reading sequences, and the p-value of a z-score."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from decodekit.core.validation import is_count, plain, read_ids, shown
from decodekit.errors import DecodekitError

# One sequence of ids, or several.
TokenSequences = (
    Iterable[int] | Iterable[Sequence[int]] | Int64[Tensor, " length"] | Int64[Tensor, "batch length"]
)


def read_sequences(who: str, sequences: TokenSequences, min_length: int = 0) -> list[list[int]]:
    """Return one sequence or several as lists of ids.

    Raises:
        ValueError: If an id is not an integer of at least 0, or there is no sequence.
        DecodekitError: If a sequence has fewer than `min_length` ids.
    """
    given: list[Any] = [plain(sequence) for sequence in plain(sequences)]
    several = [given] if given and is_count(given[0], 0) else given
    if not all(isinstance(sequence, Iterable) for sequence in several):
        raise ValueError(f"{who}: token ids must be integers of at least 0, got {shown(several)}.")
    read = [list(read_ids(who, sequence)) for sequence in several]
    if not read:
        raise ValueError(f"{who}: sequences must be at least one, got none.")
    shortest = min(map(len, read))
    if shortest < min_length:
        raise DecodekitError(f"{who}: a sequence must have at least {min_length} tokens, got {shortest}.")
    return read


def upper_tail(z_score: Float64[Tensor, " batch"]) -> Float64[Tensor, " batch"]:
    """Return the probability of at least this z-score by the normal distribution."""
    p_value: Tensor = 0.5 * torch.special.erfc(z_score / math.sqrt(2))
    return p_value
