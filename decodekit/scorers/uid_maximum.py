"""Uniform information density: the greatest surprisal."""

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.scorers._shared.information_density import InformationDensityScorer
from decodekit.scorers.base import ExtendedHypotheses, Lengths, Values


@final
@dataclass(frozen=True)
class UIDMaximum(InformationDensityScorer):
    r"""Subtracts the greatest surprisal: favours texts without a surprising token.

    $s(y) - \lambda \max(0, \max_t u_t)$ with the surprisals $u_t = -\log P(y_t \mid y_{<t}, x)$.
    Log-probabilities are taken after the processors. The penalty ranks unfinished hypotheses too.

    Args:
        weight: $\lambda$, at least 0; 0 leaves the base score unchanged. Usual values: 0.1-10.
        base: The scorer to adjust.

    Raises:
        ValueError: If `weight` is not a finite number of at least 0.

    Example:
        >>> search = dk.BeamSearch(5, scorer=UIDMaximum(0.5, base=LengthPenalty(1.0)))

    Source:
        Meister, Cotterell & Vieira, 2020, https://arxiv.org/abs/2010.02650, section 5.

    Hugging Face:
        None.
    """

    @override
    def update_adjustment(self, extended: ExtendedHypotheses, memory: Values) -> Values:
        return torch.maximum(memory, -extended.log_probs)

    @override
    def adjustment(self, lengths: Lengths, memory: Values) -> Values:
        return -self.weight * memory
