"""Stop after a time."""

import math
import time
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.stopping_criterion import Finished, LogProbs, StoppingContext, StoppingCriterion
from decodekit.core.validation import is_number


@final
@dataclass(frozen=True)
class MaxTime(StoppingCriterion):
    """Finishes every hypothesis after a number of seconds, but not before its first token.

    The clock starts when `decode` is called, so the time to read the prompt counts. It is read after every
    token, so the run takes at most one step longer. Runs on the host: a captured step has no clock.

    Args:
        seconds: Above 0.

    Raises:
        ValueError: If `seconds` is not a finite number above 0.

    Example:
        >>> dk.decode(dk.load(), "Once", dk.Greedy(), stop=MaxTime(1e-9), max_new_tokens=9).finish_reason
        [['time']]

    Hugging Face:
        `MaxTimeCriteria(seconds)`, with a clock that starts when it is constructed.
    """

    seconds: float

    capturable = False
    reason: ClassVar[str] = "time"
    batch_independent = True

    def __post_init__(self) -> None:
        if not (is_number(self.seconds) and 0 < self.seconds < math.inf):
            raise ValueError(f"MaxTime: seconds must be a finite number above 0, got {self.seconds!r}.")

    @override
    def init(self, history: History, run: StoppingContext) -> float:
        return run.started + self.seconds

    @override
    def apply(self, history: History, log_probs: LogProbs, memory: float) -> tuple[Finished, float]:
        expired = bool(time.monotonic() >= memory)
        return torch.full((len(history.tokens),), expired, device=log_probs.device), memory
