"""All of several stopping criteria at once."""

from dataclasses import dataclass
from functools import reduce
from typing import final

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.pytrees import Memory
from decodekit.core.stopping_criterion import StoppingContext, StoppingCriterion, check_criteria


@final
@dataclass(frozen=True, init=False, repr=False)
class AllOf(StoppingCriterion):
    """Finishes a hypothesis at the first token after which all of several criteria hold.

    Args:
        criteria: At least one; they must hold after the same token.

    Raises:
        TypeError: If one of them is not a `StoppingCriterion`, or there is none.

    Example:
        >>> (dk.StopStrings(".") & dk.MaxNewTokens(20)).reason
        'string and length'

    Hugging Face:
        None.
    """

    criteria: tuple[StoppingCriterion, ...]

    batch_independent = True

    def __init__(self, *criteria: StoppingCriterion) -> None:
        check_criteria("AllOf", criteria)
        object.__setattr__(self, "criteria", criteria)  # a frozen field
        object.__setattr__(self, "capturable", all(criterion.capturable for criterion in criteria))

    @property
    def reason(self) -> str:
        """The reasons, as in "string and length"."""
        return " and ".join(criterion.reason for criterion in self.criteria)

    def init(self, history: History, run: StoppingContext) -> Memory:
        """Every criterion's memory."""
        return tuple(criterion.init(history, run) for criterion in self.criteria)

    def apply(
        self, history: History, log_probs: Float32[Tensor, " rows"], memory: Memory
    ) -> tuple[Bool[Tensor, " rows"], Memory]:
        """Rows for which all of them hold."""
        said = [
            criterion.apply(history, log_probs, own)
            for criterion, own in zip(self.criteria, memory, strict=True)
        ]
        return reduce(torch.logical_and, (rows for rows, _ in said)), tuple(own for _, own in said)

    def trim(self, text: str, before: str, *, fired: bool) -> str | None:
        """As the first of them cuts that does, if it was they that finished the text."""
        if not fired:
            return None
        cuts = (criterion.trim(text, before, fired=fired) for criterion in self.criteria)
        return next((cut for cut in cuts if cut is not None), None)

    def held_back(self, text: str) -> int:
        """What one of them may cut."""
        return max(criterion.held_back(text) for criterion in self.criteria)

    def __repr__(self) -> str:
        return f"AllOf({', '.join(map(repr, self.criteria))})"
