"""Uniform information density: the local variance of the surprisals."""

from dataclasses import dataclass
from typing import NamedTuple, final

from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.scorers._shared.information_density import InformationDensityScorer, zeros_per_row
from decodekit.scorers.base import ExtendedHypotheses, Lengths, Values


class Changes(NamedTuple):
    """The last surprisal, and the sum of squared changes, of every hypothesis."""

    last: Values
    squares: Values


@final
@dataclass(frozen=True)
class UIDLocalVariance(InformationDensityScorer):
    r"""Penalizes the mean squared difference between the surprisals of neighbouring tokens.

    $s(y) - \lambda \frac{1}{|y|} \sum_t (u_t - u_{t-1})^2$ with the surprisals
    $u_t = -\log P(y_t \mid y_{<t}, x)$ and $u_0 = 0$.
    Log-probabilities are taken after the processors. The penalty ranks unfinished hypotheses too.

    Args:
        weight: $\lambda$, at least 0; 0 leaves the base score unchanged. Usual values: 0.1-10.
        base: The scorer to adjust.

    Raises:
        ValueError: If `weight` is not a finite number of at least 0.

    Example:
        >>> search = dk.BeamSearch(5, scorer=UIDLocalVariance(0.5, base=LengthPenalty(1.0)))

    Source:
        Meister, Cotterell & Vieira, 2020, https://arxiv.org/abs/2010.02650, section 5.

    Hugging Face:
        None.
    """

    @override
    def init_adjustment(self, history: History, limits: Limits) -> Changes:
        return Changes(zeros_per_row(history), zeros_per_row(history))

    @override
    def update_adjustment(self, extended: ExtendedHypotheses, memory: Changes) -> Changes:
        surprisal = -extended.log_probs
        return Changes(surprisal, memory.squares + (surprisal - memory.last) ** 2)

    @override
    def adjustment(self, lengths: Lengths, memory: Changes) -> Values:
        return -self.weight * memory.squares / lengths
