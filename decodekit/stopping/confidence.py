"""Stop at an unlikely token."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.pytrees import Memory
from decodekit.core.stopping_criterion import Finished, LogProbs, StoppingContext, StoppingCriterion
from decodekit.core.validation import is_number


@final
@dataclass(frozen=True)
class Confidence(StoppingCriterion):
    r"""Finishes a hypothesis when it emits a token less likely than a threshold.

    Holds if $P(y_t \mid y_{<t}, x) < p$ under the model, before any processor. The text keeps the token.

    Args:
        threshold: $p$, a probability in (0, 1). Usual values: 0.1-0.5.

    Raises:
        ValueError: If `threshold` is outside (0, 1).

    Example:
        >>> dk.decode(dk.load(), "she was as beautiful as the", dk.Greedy(), stop=Confidence(0.5),
        ...           max_new_tokens=9).finish_reason
        [['confidence']]

    Source:
        Assisted generation stops drafts by this rule: https://github.com/huggingface/transformers/pull/33258.

    Hugging Face:
        `ConfidenceCriteria`, which reads the first row only.
    """

    threshold: float

    reason: ClassVar[str] = "confidence"
    batch_independent = True

    def __post_init__(self) -> None:
        if not (is_number(self.threshold) and 0 < self.threshold < 1):
            raise ValueError(f"Confidence: threshold must be in (0, 1), got {self.threshold!r}.")

    @override
    def init(self, history: History, run: StoppingContext) -> Memory:
        return ()

    @override
    def apply(self, history: History, log_probs: LogProbs, memory: Memory) -> tuple[Finished, Memory]:
        return log_probs < math.log(self.threshold), memory
