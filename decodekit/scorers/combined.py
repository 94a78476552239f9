"""Combinations of scorers."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.pytrees import Memory
from decodekit.core.validation import is_finite, set_fields, shown
from decodekit.models.protocols import LOGITS_ONLY, ModelOutputsSpec
from decodekit.scorers.base import ExtendedHypotheses, Lengths, PathScorer, Values

Memories = tuple[Memory, ...]  # of each scorer


class CombinedScorer(PathScorer):
    """Combines several scorers' scores into one; each has a memory of its own.

    Attributes:
        scorers: The scorers to combine: a tuple.

    Example:
        Ranks by the lower of two scores:

        >>> class Lower(dk.CombinedScorer):
        ...     scorers = (dk.LogProb(), dk.UIDMaximum(1.0))
        ...     def combine(self, parts): return torch.minimum(*parts)
        ...     def upper_bound(self, log_probs, lengths, max_length, memory): return log_probs
    """

    scorers: Sequence[PathScorer]

    @abstractmethod
    def combine(self, parts: Sequence[Values]) -> Values:
        """Combine the scores, one tensor per scorer."""

    @property
    @override
    def stateful(self) -> bool:
        return any(scorer.stateful for scorer in self.scorers)

    @property
    @override
    def outputs_spec(self) -> ModelOutputsSpec:
        return reduce(ModelOutputsSpec.__or__, (scorer.outputs_spec for scorer in self.scorers), LOGITS_ONLY)

    @override
    def init(self, history: History, limits: Limits) -> Memories:
        return tuple(scorer.init(history, limits) for scorer in self.scorers)

    @override
    def update(self, extended: ExtendedHypotheses, memory: Memories) -> Memories:
        pairs = zip(self.scorers, memory, strict=True)
        return tuple(scorer.update(extended, part) for scorer, part in pairs)

    @override
    def score(self, log_probs: Values, lengths: Lengths, memory: Memories) -> Values:
        pairs = zip(self.scorers, memory, strict=True)
        return self.combine([scorer.score(log_probs, lengths, part) for scorer, part in pairs])


@final
@dataclass(frozen=True)
class WeightedSum(CombinedScorer):
    r"""Ranks hypotheses by a weighted sum of several scores.

    $\sum_i w_i s_i(y)$. Each score counts in full, its base included. To add a single term to another scorer,
    such as a coverage penalty, set the `base` of that class.

    Args:
        scorers: At least one.
        weights: One per scorer, any finite number; None: 1. With a weight below 0 there is no bound.

    Raises:
        ValueError: If there are no scorers, or the number of weights differs from the number of scorers.

    Example:
        >>> both = WeightedSum([LogProb(), LengthPenalty(1.0)], [0.5, 1.0])
        >>> both.score(torch.tensor([-4.0]), torch.tensor([2]), ((), ()))
        tensor([-4.])

    Hugging Face:
        None.
    """

    scorers: Sequence[PathScorer]
    weights: Sequence[float] | None = None

    batch_independent = True

    def __post_init__(self) -> None:
        scorers = _checked("WeightedSum", self.scorers)
        weights = (1.0,) * len(scorers) if self.weights is None else tuple(self.weights)
        if len(weights) != len(scorers) or not all(map(is_finite, weights)):
            raise ValueError(
                f"WeightedSum: weights must be one finite number for each of the {len(scorers)} scorers, "
                f"got {shown(self.weights)}."
            )
        set_fields(self, scorers=scorers, weights=weights)

    @property
    @override
    def stepwise(self) -> bool:
        return any(scorer.stepwise for scorer in self.scorers)

    @override
    def combine(self, parts: Sequence[Values]) -> Values:
        # A scorer of weight 0 does not count, even if its score is infinite.
        terms = [weight * part for weight, part in zip(self.weights or (), parts, strict=True) if weight]
        return reduce(torch.add, terms, torch.zeros_like(parts[0]))

    @override
    def upper_bound(self, log_probs: Values, lengths: Lengths, max_length: int, memory: Memories) -> Values:
        if any(weight < 0 for weight in self.weights or ()):
            return torch.full_like(log_probs, torch.inf)
        pairs = zip(self.scorers, memory, strict=True)
        bounds = [scorer.upper_bound(log_probs, lengths, max_length, part) for scorer, part in pairs]
        return self.combine(bounds)

    @override
    def partial_score(self, log_probs: Values, lengths: Lengths, memory: Memories) -> Values:
        # Each scorer's difference from the log-probability is weighted, not the log-probability itself.
        pairs = zip(self.scorers, memory, strict=True)
        return log_probs + self.combine(
            [scorer.partial_score(log_probs, lengths, part) - log_probs for scorer, part in pairs]
        )


@final
@dataclass(frozen=True)
class Product(CombinedScorer):
    r"""Ranks hypotheses by the product of several scores.

    $\prod_i s_i(y)$. The product of two scores below 0 is above 0, and greater for worse hypotheses. There is
    no bound, so stopping is never proved. Log-probabilities rank unfinished hypotheses.

    Args:
        scorers: At least one.

    Raises:
        ValueError: If there are no scorers.

    Example:
        >>> root = ScoreFunction(lambda log_probs, lengths: lengths**-0.5)
        >>> Product([LogProb(), root]).score(torch.tensor([-4.0]), torch.tensor([4]), ((), ()))
        tensor([-2.])

    Hugging Face:
        None.
    """

    scorers: Sequence[PathScorer]

    batch_independent = True

    def __post_init__(self) -> None:
        set_fields(self, scorers=_checked("Product", self.scorers))

    @override
    def combine(self, parts: Sequence[Values]) -> Values:
        return reduce(torch.mul, parts)

    @override
    def upper_bound(self, log_probs: Values, lengths: Lengths, max_length: int, memory: Memories) -> Values:
        # If two factors fall, their product may rise.
        return torch.full_like(log_probs, torch.inf)


def _checked(who: str, scorers: object) -> tuple[PathScorer, ...]:
    read = tuple(scorers) if isinstance(scorers, Sequence) else ()
    if not read or not all(isinstance(scorer, PathScorer) for scorer in read):
        raise ValueError(f"{who}: scorers must be one or more Scorers or PathScorers, got {shown(scorers)}.")
    return read
