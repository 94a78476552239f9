"""Ids that end a text, as a criterion among others."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.pytrees import Memory
from decodekit.core.stopping_criterion import StoppingContext, StoppingCriterion, check_reason
from decodekit.core.validation import read_ids


@final
@dataclass(frozen=True)
class EndIds(StoppingCriterion):
    """Finishes a hypothesis that says one of some ids.

    In addition to the run's own end ids, and to be combined with other criteria.

    Args:
        ids: One id or several.
        reason: What `finish_reason` says.

    Raises:
        ValueError: If an id is not an integer of at least 0, there are none, or `reason` is not text.

    Example:
        >>> EndIds([5, 6])
        EndIds(ids=(5, 6), reason='end')

    Hugging Face:
        `EosTokenCriteria(ids)`.
    """

    ids: int | Iterable[int]
    reason: str = "end"

    batch_independent = True

    def __post_init__(self) -> None:
        ids = read_ids("EndIds", self.ids)
        if not ids:
            raise ValueError("EndIds: there must be at least one id, got none.")
        check_reason("EndIds", self.reason)
        object.__setattr__(self, "ids", ids)  # a frozen field

    def init(self, history: History, run: StoppingContext) -> Memory:  # noqa: ARG002 - the contract's signature
        """Nothing."""
        return ()

    def apply(
        self,
        history: History,
        log_probs: Float32[Tensor, " rows"],  # noqa: ARG002 - the contract's signature
        memory: Memory,
    ) -> tuple[Bool[Tensor, " rows"], Memory]:
        """Rows whose newest token is one of the ids."""
        last = history.last()
        ends = torch.zeros_like(last, dtype=torch.bool)
        for token in read_ids("EndIds", self.ids):
            ends = ends | (last == token)
        return ends, memory
