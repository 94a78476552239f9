"""Scorers made of scorers."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.pytrees import Memory
from decodekit.core.validation import is_finite
from decodekit.models.model_outputs import LOGITS_ONLY, ModelOutputsSpec
from decodekit.scorers.base import ExtendedHypotheses, PathScorer


class CombinedScorer(PathScorer):
    """One score made of several scorers', each with a memory of its own.

    Attributes:
        scorers: What is combined: a tuple.

    Example:
        Ranks by the lower of two scores:

        >>> class Lower(dk.CombinedScorer):
        ...     scorers = (dk.LogProb(), dk.UIDMaximum(1.0))
        ...     def combine(self, parts): return torch.minimum(*parts)
        ...     def upper_bound(self, log_probs, lengths, max_length, memory): return log_probs
    """

    scorers: Sequence[PathScorer]

    @abstractmethod
    def combine(self, parts: Sequence[Float[Tensor, " hyps"]]) -> Float[Tensor, " hyps"]:
        """One score of each one's."""

    @property
    def stateful(self) -> bool:
        """Whether one of them does."""
        return any(scorer.stateful for scorer in self.scorers)

    @property
    def outputs_spec(self) -> ModelOutputsSpec:
        """What they ask for together."""
        return reduce(ModelOutputsSpec.__or__, (scorer.outputs_spec for scorer in self.scorers), LOGITS_ONLY)

    def init(self, history: History, limits: Limits) -> tuple[Memory, ...]:
        """A memory for each."""
        return tuple(scorer.init(history, limits) for scorer in self.scorers)

    def update(self, extended: ExtendedHypotheses, memory: tuple[Memory, ...]) -> tuple[Memory, ...]:
        """Each one's memory."""
        return tuple(scorer.update(extended, own) for scorer, own in zip(self.scorers, memory, strict=True))

    def score(
        self,
        log_probs: Float[Tensor, " hyps"],
        lengths: Int64[Tensor, " hyps"],
        memory: tuple[Memory, ...],
    ) -> Float[Tensor, " hyps"]:
        """All scores as one."""
        several = zip(self.scorers, memory, strict=True)
        return self.combine([scorer.score(log_probs, lengths, own) for scorer, own in several])


@final
@dataclass(frozen=True)
class WeightedSum(CombinedScorer):
    r"""Ranks hypotheses by a weighted sum of what several scorers make of them.

    $\sum_i w_i s_i(y)$. Each scorer counts with all that it is made of: for a term on top of another scorer,
    such as a coverage penalty, see that class's `base`.

    Args:
        scorers: At least one.
        weights: One for each, any finite number; None: 1. Under a weight below 0 there is no bound.

    Raises:
        ValueError: If there are no scorers, or not as many weights.

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
                f"got {self.weights!r:.80}."
            )
        object.__setattr__(self, "scorers", scorers)  # a frozen field
        object.__setattr__(self, "weights", weights)

    @property
    def stepwise(self) -> bool:
        """Whether one of them does."""
        return any(scorer.stepwise for scorer in self.scorers)

    def combine(self, parts: Sequence[Float[Tensor, " hyps"]]) -> Float[Tensor, " hyps"]:
        """The weighted sum."""
        # A scorer of weight 0 does not count, even where it is infinite.
        weighed = [weight * part for weight, part in zip(self.weights or (), parts, strict=True) if weight]
        return reduce(torch.add, weighed, torch.zeros_like(parts[0]))

    def upper_bound(
        self,
        log_probs: Float[Tensor, " hyps"],
        lengths: Int64[Tensor, " hyps"],
        max_length: int,
        memory: tuple[Memory, ...],
    ) -> Float[Tensor, " hyps"]:
        """The weighted sum of the bounds."""
        if any(weight < 0 for weight in self.weights or ()):
            return torch.full_like(log_probs, torch.inf)
        several = zip(self.scorers, memory, strict=True)
        return self.combine(
            [scorer.upper_bound(log_probs, lengths, max_length, own) for scorer, own in several]
        )

    def partial_score(
        self, log_probs: Float[Tensor, " hyps"], lengths: Int64[Tensor, " hyps"], memory: tuple[Memory, ...]
    ) -> Float[Tensor, " hyps"]:
        """The log-probability, and what each one's guide puts on top of it, weighted."""
        several = zip(self.scorers, memory, strict=True)
        return log_probs + self.combine(
            [scorer.partial_score(log_probs, lengths, own) - log_probs for scorer, own in several]
        )


@final
@dataclass(frozen=True)
class Product(CombinedScorer):
    r"""Ranks hypotheses by the product of what several scorers make of them.

    $\prod_i s_i(y)$. Mind the signs: two scores below 0 have a product above 0, greater for worse ones.
    Nothing bounds it, so stopping is never proved; while the search goes on, log-probabilities rank.

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
        object.__setattr__(self, "scorers", _checked("Product", self.scorers))  # a frozen field

    def combine(self, parts: Sequence[Float[Tensor, " hyps"]]) -> Float[Tensor, " hyps"]:
        """The product."""
        return reduce(torch.mul, parts)

    def upper_bound(
        self,
        log_probs: Float[Tensor, " hyps"],
        lengths: Int64[Tensor, " hyps"],  # noqa: ARG002 - the contract's signature
        max_length: int,  # noqa: ARG002
        memory: tuple[Memory, ...],  # noqa: ARG002
    ) -> Float[Tensor, " hyps"]:
        """Infinity: two factors may both fall, and their product rise."""
        return torch.full_like(log_probs, torch.inf)


def _checked(who: str, scorers: object) -> tuple[PathScorer, ...]:
    several = tuple(scorers) if isinstance(scorers, Sequence) else ()
    if not several or not all(isinstance(scorer, PathScorer) for scorer in several):
        raise ValueError(f"{who}: scorers must be one or more Scorers or PathScorers, got {scorers!r:.80}.")
    return several
