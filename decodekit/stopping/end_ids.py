"""Stop at certain token ids."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.pytrees import Memory
from decodekit.core.stopping_criterion import Finished, LogProbs, StoppingContext, StoppingCriterion
from decodekit.core.validation import TEXT, check_fields, read_ids, set_fields


@final
@dataclass(frozen=True)
class EndIds(StoppingCriterion):
    """Finishes a hypothesis when it emits one of several ids.

    The run's own end ids still apply. The criterion can be combined with others.

    Args:
        ids: One id or several.
        reason: The `finish_reason`.

    Raises:
        ValueError: If an id is not an integer of at least 0, `ids` is empty, or `reason` is not text.

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
        check_fields(self, reason=TEXT)
        set_fields(self, ids=ids)

    @override
    def init(self, history: History, run: StoppingContext) -> Memory:
        return ()

    @override
    def apply(self, history: History, log_probs: LogProbs, memory: Memory) -> tuple[Finished, Memory]:
        last = history.last()
        emitted = [last == token for token in read_ids("EndIds", self.ids)]
        return torch.stack(emitted).any(0), memory
