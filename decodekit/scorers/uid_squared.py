"""Uniform information density: the squared surprisals."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float, Int64
from torch import Tensor

from decodekit.scorers._shared.information_density import InformationDensityScorer
from decodekit.scorers.base import ExtendedHypotheses


@final
@dataclass(frozen=True)
class UIDSquared(InformationDensityScorer):
    r"""Takes off the squared surprisals: favours texts whose tokens share their improbability.

    $s(y) - \lambda \sum_t u_t^2$ with the surprisals $u_t = -\log P(y_t \mid y_{<t}, x)$.
    Log-probabilities are those that the search adds up. Unfinished hypotheses are ranked so as well.

    Args:
        weight: $\lambda$, at least 0; 0 is the base alone. Usual values: 0.01-1.
        base: What the penalty is taken from.

    Raises:
        ValueError: If `weight` is not a finite number of at least 0.

    Example:
        >>> search = dk.BeamSearch(5, scorer=UIDSquared(0.5, base=LengthPenalty(1.0)))

    Source:
        Meister, Cotterell & Vieira, 2020, https://arxiv.org/abs/2010.02650, section 5.

    Hugging Face:
        None.
    """

    batch_independent = True

    def update_adjustment(
        self, extended: ExtendedHypotheses, memory: Float[Tensor, " hyps"]
    ) -> Float[Tensor, " hyps"]:
        """One square more."""
        return memory + extended.log_probs**2

    def adjustment(
        self,
        lengths: Int64[Tensor, " hyps"],  # noqa: ARG002 - the contract's signature
        memory: Float[Tensor, " hyps"],
    ) -> Float[Tensor, " hyps"]:
        """The penalty, below 0."""
        return -self.weight * memory

    def adjustment_bound(
        self,
        lengths: Int64[Tensor, " hyps"],
        max_length: int,  # noqa: ARG002 - the contract's signature
        memory: Float[Tensor, " hyps"],
    ) -> Float[Tensor, " hyps"]:
        """The penalty so far, which can only grow."""
        return self.adjustment(lengths, memory)
