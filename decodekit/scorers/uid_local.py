"""Uniform information density: the change from token to token."""

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.scorers._shared.information_density import InformationDensityScorer, nothing
from decodekit.scorers.base import ExtendedHypotheses


class Changes(NamedTuple):
    """The last surprisal, and the sum of the squared changes so far, one a hypothesis."""

    last: Float[Tensor, " hyps"]
    squares: Float[Tensor, " hyps"]


@final
@dataclass(frozen=True)
class UIDLocalVariance(InformationDensityScorer):
    r"""Takes off the squared changes of surprisal from token to token: favours steady texts.

    $s(y) - \lambda \frac{1}{|y|} \sum_t (u_t - u_{t-1})^2$ with the surprisals
    $u_t = -\log P(y_t \mid y_{<t}, x)$ and $u_0 = 0$.
    Log-probabilities are those that the search adds up. Unfinished hypotheses are ranked so as well.

    Args:
        weight: $\lambda$, at least 0; 0 is the base alone. Usual values: 0.1-10.
        base: What the penalty is taken from.

    Raises:
        ValueError: If `weight` is not a finite number of at least 0.

    Example:
        >>> search = dk.BeamSearch(5, scorer=UIDLocalVariance(0.5, base=LengthPenalty(1.0)))

    Source:
        Meister, Cotterell & Vieira, 2020, https://arxiv.org/abs/2010.02650, section 5.

    Hugging Face:
        None.
    """

    batch_independent = True

    def init_adjustment(self, history: History, limits: Limits) -> Changes:  # noqa: ARG002
        """No surprise yet."""
        return Changes(nothing(history), nothing(history))

    def update_adjustment(self, extended: ExtendedHypotheses, memory: Changes) -> Changes:
        """One change more."""
        surprisal = -extended.log_probs
        return Changes(surprisal, memory.squares + (surprisal - memory.last) ** 2)

    def adjustment(self, lengths: Int64[Tensor, " hyps"], memory: Changes) -> Float[Tensor, " hyps"]:
        """The penalty, below 0."""
        return -self.weight * memory.squares / lengths

    def adjustment_bound(
        self, lengths: Int64[Tensor, " hyps"], max_length: int, memory: Changes
    ) -> Float[Tensor, " hyps"]:
        """The changes so far, spread over the longest text."""
        return self.adjustment(torch.full_like(lengths, max_length), memory)
