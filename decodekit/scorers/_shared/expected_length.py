"""Adjustments that depend on the expected length of a text."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.validation import is_positive, plain, set_fields, shown
from decodekit.errors import DecodekitError
from decodekit.scorers.adjusted import AdjustedScorer, check_adjusted
from decodekit.scorers.base import ExtendedHypotheses, Lengths, Values


class ExpectedLengthScorer(AdjustedScorer):
    """Adjusts another score by a hypothesis's length and the expected length, which is the memory.

    The adjustment must not decrease with the length.
    """

    ratio: float | None
    length: float | Sequence[float] | None

    batch_independent = True

    def check(self, weight: str) -> None:
        """Raise unless the fields are valid, and convert `length` to Python's numbers."""
        check_adjusted(self, weight)
        name, ratio, length = type(self).__name__, self.ratio, self.length
        if (ratio is None) == (length is None):
            raise ValueError(
                f"{name}: either ratio or length must be given, got {shown(ratio)} and {shown(length)}."
            )
        length = plain(length)
        if isinstance(length, Sequence) and not isinstance(length, str):
            length = tuple(length)
        numbers = (ratio,) if length is None else length if isinstance(length, tuple) else (length,)
        if not numbers or not all(map(is_positive, numbers)):
            field = "ratio" if length is None else "length"
            raise ValueError(f"{name}: {field} must be above 0 and finite, got {shown(numbers)}.")
        set_fields(self, length=length)

    @override
    def init_adjustment(self, history: History, limits: Limits) -> Float[Tensor, " rows"]:
        if self.ratio is not None:
            valid = history.valid[:, : limits.prompt_length]
            valid = valid if history.source is None else history.to_rows(history.source.valid)
            return self.ratio * valid.sum(-1).float()
        lengths = self.length if isinstance(self.length, Sequence) else [self.length] * history.batch
        if len(lengths) != history.batch:
            raise DecodekitError(
                f"{type(self).__name__}: there must be one length per prompt, got {len(lengths)} for "
                f"{history.batch} prompts."
            )
        return history.to_rows(torch.tensor(lengths, dtype=torch.float32, device=history.tokens.device))

    @override
    def update_adjustment(self, extended: ExtendedHypotheses, memory: Values) -> Values:
        return memory

    @override
    def adjustment_bound(self, lengths: Lengths, max_length: int, memory: Values) -> Values:
        return self.adjustment(torch.full_like(lengths, max_length), memory)
