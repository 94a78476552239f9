"""Uniform information density: the variance of the surprisals."""

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.scorers._shared.information_density import InformationDensityScorer, nothing
from decodekit.scorers.base import ExtendedHypotheses


class Moments(NamedTuple):
    """Sums over the tokens so far, one a hypothesis: of the surprisals, and of their squares."""

    sums: Float64[Tensor, " hyps"]
    squares: Float64[Tensor, " hyps"]


@final
@dataclass(frozen=True)
class UIDVariance(InformationDensityScorer):
    r"""Takes off the variance of the surprisals: favours texts that are as surprising throughout.

    $s(y) - \lambda \frac{1}{|y|} \sum_t (u_t - \mu)^2$ with the surprisals
    $u_t = -\log P(y_t \mid y_{<t}, x)$ and their mean $\mu$.
    Log-probabilities are those that the search adds up. Unfinished hypotheses are ranked so as well.

    Args:
        weight: $\lambda$, at least 0; 0 is the base alone. Usual values: 0.1-10.
        base: What the penalty is taken from.

    Raises:
        ValueError: If `weight` is not a finite number of at least 0.

    Example:
        >>> search = dk.BeamSearch(5, scorer=UIDVariance(0.5, base=LengthPenalty(1.0)))

    Source:
        Meister, Cotterell & Vieira, 2020, https://arxiv.org/abs/2010.02650, section 5.

    Hugging Face:
        None.
    """

    batch_independent = True

    def init_adjustment(self, history: History, limits: Limits) -> Moments:  # noqa: ARG002
        """No surprise yet."""
        return Moments(nothing(history, torch.float64), nothing(history, torch.float64))

    def update_adjustment(self, extended: ExtendedHypotheses, memory: Moments) -> Moments:
        """One surprise more."""
        surprisal = -extended.log_probs.double()
        return Moments(memory.sums + surprisal, memory.squares + surprisal**2)

    def adjustment(self, lengths: Int64[Tensor, " hyps"], memory: Moments) -> Float[Tensor, " hyps"]:
        """The penalty, below 0."""
        # In double precision, because it is the small difference of two great numbers.
        variance = memory.squares / lengths - (memory.sums / lengths) ** 2
        return -self.weight * variance.clamp(min=0).float()

    def adjustment_bound(
        self,
        lengths: Int64[Tensor, " hyps"],
        max_length: int,
        memory: Moments,
    ) -> Float[Tensor, " hyps"]:
        """What must stay of the squares: a mean of all surprisals takes away from them what it can."""
        # With n tokens of sum S and squares Q, and m tokens of any surprisals after them, the sum of squared
        # distances from the mean is least where those equal S / n: it is the Q - S^2 / n of now.
        spread = (memory.squares - memory.sums**2 / lengths).clamp(min=0)
        return -self.weight * (spread / max_length).float()
