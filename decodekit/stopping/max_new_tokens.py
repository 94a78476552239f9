"""A number of new tokens, as a criterion among others."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.stopping_criterion import StoppingContext, StoppingCriterion, check_reason
from decodekit.core.validation import is_count


@final
@dataclass(frozen=True)
class MaxNewTokens(StoppingCriterion):
    """Holds once a hypothesis has so many new tokens.

    `decode(max_new_tokens=...)` is the limit of the run; this one is to be combined with others, as in
    `MaxNewTokens(20) & StopStrings(".")`: the first full stop from the twentieth token on.

    Args:
        max_new_tokens: At least 1.
        reason: What `finish_reason` says.

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
        if not is_count(self.max_new_tokens, 1):
            raise ValueError(
                f"MaxNewTokens: max_new_tokens must be an integer of at least 1, got {self.max_new_tokens!r}."
            )
        check_reason("MaxNewTokens", self.reason)

    def init(self, history: History, run: StoppingContext) -> Int64[Tensor, ""]:  # noqa: ARG002 - the contract's signature
        """The column at which it holds."""
        return history.position + self.max_new_tokens

    def apply(
        self,
        history: History,
        log_probs: Float32[Tensor, " rows"],  # noqa: ARG002 - the contract's signature
        memory: Int64[Tensor, ""],
    ) -> tuple[Bool[Tensor, " rows"], Int64[Tensor, ""]]:
        """All rows, from that column on."""
        return (history.position >= memory).expand(len(history.tokens)), memory
