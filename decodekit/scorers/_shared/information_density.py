"""Penalties for uneven information density."""

from dataclasses import KW_ONLY, dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.pytrees import Memory
from decodekit.scorers.adjusted import AdjustedScorer, check_adjusted
from decodekit.scorers.base import Lengths, PathScorer, Values
from decodekit.scorers.log_prob import LogProb


@dataclass(frozen=True)
class InformationDensityScorer(AdjustedScorer):
    """Subtracts a penalty on the surprisals of a hypothesis's tokens from another score, at every step.

    The penalty of a continuation must be at least the penalty of the present tokens at the maximum length.
    """

    weight: float
    _: KW_ONLY
    base: PathScorer = LogProb()

    batch_independent = True
    stepwise = True

    def __post_init__(self) -> None:
        check_adjusted(self, "weight")

    @override
    def init_adjustment(self, history: History, limits: Limits) -> Memory:
        return zeros_per_row(history)

    @override
    def adjustment_bound(self, lengths: Lengths, max_length: int, memory: Memory) -> Values:
        return self.adjustment(torch.full_like(lengths, max_length), memory)


def zeros_per_row(history: History, dtype: torch.dtype = torch.float32) -> Float[Tensor, " rows"]:
    """Return a zero for every row."""
    return torch.zeros(len(history.tokens), dtype=dtype, device=history.tokens.device)
