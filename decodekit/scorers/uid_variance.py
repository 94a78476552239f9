"""Uniform information density: the variance of the surprisals."""

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.scorers._shared.information_density import InformationDensityScorer, zeros_per_row
from decodekit.scorers.base import ExtendedHypotheses, Lengths, Values


class Moments(NamedTuple):
    """Sums of the surprisals, and of their squares, of every hypothesis, in double precision."""

    sums: Values
    squares: Values


@final
@dataclass(frozen=True)
class UIDVariance(InformationDensityScorer):
    r"""Subtracts the variance of the surprisals: favours texts of even surprisal.

    $s(y) - \lambda \frac{1}{|y|} \sum_t (u_t - \mu)^2$ with the surprisals
    $u_t = -\log P(y_t \mid y_{<t}, x)$ and their mean $\mu$.
    Log-probabilities are taken after the processors. The penalty ranks unfinished hypotheses too.

    Args:
        weight: $\lambda$, at least 0; 0 leaves the base score unchanged. Usual values: 0.1-10.
        base: The scorer to adjust.

    Raises:
        ValueError: If `weight` is not a finite number of at least 0.

    Example:
        >>> search = dk.BeamSearch(5, scorer=UIDVariance(0.5, base=LengthPenalty(1.0)))

    Source:
        Meister, Cotterell & Vieira, 2020, https://arxiv.org/abs/2010.02650, section 5.

    Hugging Face:
        None.
    """

    @override
    def init_adjustment(self, history: History, limits: Limits) -> Moments:
        return Moments(zeros_per_row(history, torch.float64), zeros_per_row(history, torch.float64))

    @override
    def update_adjustment(self, extended: ExtendedHypotheses, memory: Moments) -> Moments:
        surprisal = -extended.log_probs.double()
        return Moments(memory.sums + surprisal, memory.squares + surprisal**2)

    @override
    def adjustment(self, lengths: Lengths, memory: Moments) -> Values:
        # In double precision, because the variance is a small difference of two large numbers.
        variance = memory.squares / lengths - (memory.sums / lengths) ** 2
        return -self.weight * variance.clamp(min=0).float()

    @override
    def adjustment_bound(self, lengths: Lengths, max_length: int, memory: Moments) -> Values:
        # Let n tokens have surprisals of sum S and sum of squares Q. Further tokens add least to the sum of
        # squared distances from the mean if their surprisals equal S / n: then the sum stays at Q - S^2 / n.
        spread = (memory.squares - memory.sums**2 / lengths).clamp(min=0)
        return -self.weight * (spread / max_length).float()
