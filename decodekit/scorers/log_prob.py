"""The plain log-probability."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float, Int64
from torch import Tensor

from decodekit.scorers.base import Scorer


@final
@dataclass(frozen=True)
class LogProb(Scorer):
    """Ranks hypotheses by the sum of their log-probabilities: favours short ones.

    Example:
        >>> LogProb()(torch.tensor([-3.0]), torch.tensor([2]))
        tensor([-3.])

    Hugging Face:
        `length_penalty=0.0`.
    """

    batch_independent = True

    def __call__(
        self,
        log_probs: Float[Tensor, "*shape"],
        lengths: Int64[Tensor, "*shape"],  # noqa: ARG002 - the contract's signature
    ) -> Float[Tensor, "*shape"]:
        """The sums themselves."""
        return log_probs

    def bound(
        self,
        log_probs: Float[Tensor, "*shape"],
        lengths: Int64[Tensor, "*shape"],  # noqa: ARG002 - the contract's signature
        max_length: int,  # noqa: ARG002
    ) -> Float[Tensor, "*shape"]:
        """The sums so far: further tokens can only take away."""
        return log_probs
