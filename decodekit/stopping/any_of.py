"""Any of several stopping criteria."""

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
class AnyOf(StoppingCriterion):
    """Finishes a hypothesis as soon as one of several criteria does.

    `decode(stop=AnyOf(a, b))` is `decode(stop=[a, b])`: the finish reason is that of the first which
    holds.

    Args:
        criteria: At least one; the first that holds gives the reason.

    Raises:
        TypeError: If one of them is not a `StoppingCriterion`, or there is none.

    Example:
        >>> dk.MaxTime(60) | dk.StopStrings("!")
        AnyOf(MaxTime(seconds=60), StopStrings(strings=('!',), include=False))

    Hugging Face:
        `StoppingCriteriaList`.
    """

    criteria: tuple[StoppingCriterion, ...]

    batch_independent = True

    def __init__(self, *criteria: StoppingCriterion) -> None:
        check_criteria("AnyOf", criteria)
        object.__setattr__(self, "criteria", criteria)  # a frozen field
        object.__setattr__(self, "capturable", all(criterion.capturable for criterion in criteria))

    @property
    def reason(self) -> str:
        """The reasons, as in "time or string": inside `AllOf` it is not known which."""
        return " or ".join(criterion.reason for criterion in self.criteria)

    def init(self, history: History, run: StoppingContext) -> Memory:
        """Every criterion's memory."""
        return tuple(criterion.init(history, run) for criterion in self.criteria)

    def apply(
        self, history: History, log_probs: Float32[Tensor, " rows"], memory: Memory
    ) -> tuple[Bool[Tensor, " rows"], Memory]:
        """Rows for which one of them holds."""
        said = [
            criterion.apply(history, log_probs, own)
            for criterion, own in zip(self.criteria, memory, strict=True)
        ]
        return reduce(torch.logical_or, (rows for rows, _ in said)), tuple(own for _, own in said)

    def trim(self, text: str, before: str, *, fired: bool) -> str | None:
        """As the first of them cuts that does."""
        cuts = (criterion.trim(text, before, fired=fired) for criterion in self.criteria)
        return next((cut for cut in cuts if cut is not None), None)

    def held_back(self, text: str) -> int:
        """What one of them may cut."""
        return max(criterion.held_back(text) for criterion in self.criteria)

    def __repr__(self) -> str:
        return f"AnyOf({', '.join(map(repr, self.criteria))})"


def flatten(criterion: StoppingCriterion) -> tuple[StoppingCriterion, ...]:
    """The criteria of an `AnyOf`, and of those in it, one by one."""
    if not isinstance(criterion, AnyOf):
        return (criterion,)
    return tuple(one for inner in criterion.criteria for one in flatten(inner))
