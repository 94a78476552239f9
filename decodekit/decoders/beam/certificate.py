"""What a search can prove about its result."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Certificate:
    """What a search has proved: `Decoded.report` of `BeamSearch` and of the exact searches.

    It holds under the scorer, within `max_new_tokens`, among the texts that the processors allow, for
    processors after which no log-probability is above 0; where one was seen, no bound is trusted.

    Attributes:
        bound: No text that was not returned scores more than this; infinity where nothing is known.
        worst: The score of the last hypothesis that was asked for; minus infinity where there are fewer.
        nodes: How many texts' next tokens were looked at; None where the search does not count them.

    Example:
        >>> out = dk.decode(dk.testing.HashModel(3), [[0]], dk.BeamSearch(9), max_new_tokens=2)
        >>> out.report.proved
        tensor([True])
    """

    bound: Float[Tensor, " batch"]
    worst: Float[Tensor, " batch"]
    nodes: Int64[Tensor, " batch"] | None = None

    @property
    def proved(self) -> Bool[Tensor, " batch"]:
        """Whether the hypotheses returned are the best there are: nothing else scores more than the last."""
        return self.worst >= self.bound

    @property
    def gap(self) -> Float[Tensor, " batch"]:
        """How much more than the last of them another text may score at most; 0 where it is proved."""
        return torch.where(self.proved, 0.0, self.bound - self.worst)
