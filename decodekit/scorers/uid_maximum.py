"""Uniform information density: the greatest surprisal."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from decodekit.scorers._shared.information_density import InformationDensityScorer
from decodekit.scorers.base import ExtendedHypotheses


@final
@dataclass(frozen=True)
class UIDMaximum(InformationDensityScorer):
    r"""Takes off the greatest surprisal: favours texts without a surprising token.

    $s(y) - \lambda \max(0, \max_t u_t)$ with the surprisals $u_t = -\log P(y_t \mid y_{<t}, x)$.
    Log-probabilities are those that the search adds up. Unfinished hypotheses are ranked so as well.

    Args:
        weight: $\lambda$, at least 0; 0 is the base alone. Usual values: 0.1-10.
        base: What the penalty is taken from.

    Raises:
        ValueError: If `weight` is not a finite number of at least 0.

    Example:
        >>> search = dk.BeamSearch(5, scorer=UIDMaximum(0.5, base=LengthPenalty(1.0)))

    Source:
        Meister, Cotterell & Vieira, 2020, https://arxiv.org/abs/2010.02650, section 5.

    Hugging Face:
        None.
    """

    batch_independent = True

    def update_adjustment(
        self, extended: ExtendedHypotheses, memory: Float[Tensor, " hyps"]
    ) -> Float[Tensor, " hyps"]:
        """The greatest so far."""
        return torch.maximum(memory, -extended.log_probs)

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
