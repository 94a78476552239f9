"""Stop after a number of new tokens."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.stopping_criterion import Finished, LogProbs, StoppingContext, StoppingCriterion
from decodekit.core.validation import TEXT, at_least, check_fields


@final
@dataclass(frozen=True)
class MaxNewTokens(StoppingCriterion):
    """Holds once a hypothesis has `max_new_tokens` new tokens.

    `decode(max_new_tokens=...)` is the limit of the run; this criterion combines with others, as in
    `MaxNewTokens(20) & StopStrings(".")`: the first full stop after 19 or more tokens.

    Args:
        max_new_tokens: At least 1.
        reason: The `finish_reason`.

    Raises:
        ValueError: If `max_new_tokens` is not an integer of at least 1, or `reason` is not text.

    Example:
        >>> dk.decode(dk.load(), "Once", dk.Greedy(), stop=MaxNewTokens(3), max_new_tokens=9).lengths
        tensor([[3]])

    Hugging Face:
        `MaxLengthCriteria(max_length)`, which counts the prompt and its padding too.
    """

    max_new_tokens: int
    reason: str = "length"

    batch_independent = True

    def __post_init__(self) -> None:
        check_fields(self, max_new_tokens=at_least(1), reason=TEXT)

    @override
    def init(self, history: History, run: StoppingContext) -> Int64[Tensor, ""]:
        return history.position + self.max_new_tokens

    @override
    def apply(
        self, history: History, log_probs: LogProbs, memory: Int64[Tensor, ""]
    ) -> tuple[Finished, Int64[Tensor, ""]]:
        return (history.position >= memory).expand(len(history.tokens)), memory
