"""What the penalties for uneven information density share."""

from dataclasses import KW_ONLY, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.pytrees import Memory
from decodekit.scorers.adjusted import AdjustedScorer, check_weight
from decodekit.scorers.base import PathScorer
from decodekit.scorers.log_prob import LogProb


@dataclass(frozen=True)
class InformationDensityScorer(AdjustedScorer):
    """Takes a penalty off a base by the surprisals of a hypothesis's tokens; it guides the search as well."""

    weight: float
    _: KW_ONLY
    base: PathScorer = LogProb()

    def __post_init__(self) -> None:
        check_weight(self, "weight", self.weight)

    @property
    def stepwise(self) -> bool:
        """Yes."""
        return True

    def init_adjustment(self, history: History, limits: Limits) -> Memory:  # noqa: ARG002 - the contract's signature
        """No surprise yet: a number a row."""
        return nothing(history)


def nothing(history: History, dtype: torch.dtype = torch.float32) -> Float[Tensor, " rows"]:
    """A zero for every row."""
    return torch.zeros(len(history.tokens), dtype=dtype, device=history.tokens.device)
