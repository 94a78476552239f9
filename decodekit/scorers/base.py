"""The contract of scorers."""

from abc import ABC, abstractmethod

from jaxtyping import Float, Int64
from torch import Tensor


class Scorer(ABC):
    """What a hypothesis is worth inside the search: finished ones are ranked by it.

    Both methods are elementwise and pure, over tensors of any one shape.

    Example:
        >>> class WordReward(dk.Scorer):
        ...     def __call__(self, log_probs, lengths): return log_probs + 0.5 * lengths
        ...     def bound(self, log_probs, lengths, max_length): return log_probs + 0.5 * max_length
    """

    @abstractmethod
    def __call__(
        self, log_probs: Float[Tensor, "*shape"], lengths: Int64[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """The worth of hypotheses of this summed log-probability and length.

        Args:
            log_probs: Sums over the tokens, in nats.
            lengths: New tokens, the end id included, at least 1.
        """

    @abstractmethod
    def bound(
        self, log_probs: Float[Tensor, "*shape"], lengths: Int64[Tensor, "*shape"], max_length: int
    ) -> Float[Tensor, "*shape"]:
        """A number that no continuation scores more than, so that stopping can be proved.

        Each further token adds at most 0 to `log_probs`. Infinity is honest where nothing better is
        known, and switches proofs off.

        Args:
            log_probs: Sums so far, at most 0.
            lengths: New tokens so far, at least 1.
            max_length: New tokens at most.
        """
