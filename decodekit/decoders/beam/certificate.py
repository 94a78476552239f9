"""Proofs of optimality."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Certificate:
    """Proof that a search has found the best hypotheses: `Decoded.report` of `BeamSearch` and exact searches.

    It holds under the scorer, within `max_new_tokens`, among the sequences that the processors allow. It
    requires that no log-probability is above 0 after the processors; otherwise `bound` is infinity.

    Attributes:
        bound: Upper bound on the score of every hypothesis that was not returned; infinity if none is known.
        worst: Score of the last returned hypothesis; minus infinity if fewer than `num_return` exist.
        nodes: Number of prefixes that the search has expanded; None where it does not count them.

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
        """True if no other hypothesis scores more than the last one returned."""
        return self.worst >= self.bound

    @property
    def gap(self) -> Float[Tensor, " batch"]:
        """Upper bound on how much more another hypothesis scores than the last returned; 0 if proved."""
        return torch.where(self.proved, 0.0, self.bound - self.worst)
