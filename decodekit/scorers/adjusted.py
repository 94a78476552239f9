"""Scorers that add an adjustment to another scorer's score."""

from abc import abstractmethod
from typing import NamedTuple, final

from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.pytrees import Memory
from decodekit.core.validation import NON_NEGATIVE, check_fields
from decodekit.models.protocols import LOGITS_ONLY, ModelOutputsSpec
from decodekit.scorers.base import ExtendedHypotheses, Lengths, PathScorer, Values, check_scorer_type


class AdjustedMemory(NamedTuple):
    """Memories of the adjustment and of the base."""

    adjustment: Memory
    base: Memory


class AdjustedScorer(PathScorer):
    """Adds a reward to another scorer's score, or subtracts a penalty from it.

    Example:
        A penalty for tokens above an id:

        >>> class Low(dk.AdjustedScorer):
        ...     base = dk.LengthPenalty(1.0)
        ...     def init_adjustment(self, history, limits): return torch.zeros(len(history.tokens))
        ...     def update_adjustment(self, extended, memory): return memory - (extended.tokens > 99).float()
        ...     def adjustment(self, lengths, memory): return memory
        ...     def adjustment_bound(self, lengths, max_length, memory): return memory
    """

    @property
    @abstractmethod
    def base(self) -> PathScorer:
        """The other scorer."""

    @property
    def adjustment_spec(self) -> ModelOutputsSpec:
        """Model outputs that the adjustment needs besides the logits. By default none."""
        return LOGITS_ONLY

    @abstractmethod
    def init_adjustment(self, history: History, limits: Limits) -> Memory:
        """Return the adjustment's memory of every row before the first new token."""

    @abstractmethod
    def update_adjustment(self, extended: ExtendedHypotheses, memory: Memory) -> Memory:
        """Return the adjustment's memory of the extended hypotheses."""

    @abstractmethod
    def adjustment(self, lengths: Lengths, memory: Memory) -> Values:
        """Return the number added to the base's score."""

    @abstractmethod
    def adjustment_bound(self, lengths: Lengths, max_length: int, memory: Memory) -> Values:
        """Bound the adjustment from above, now and after any continuation."""

    @final
    @property
    @override
    def outputs_spec(self) -> ModelOutputsSpec:
        return self.adjustment_spec | self.base.outputs_spec

    @final
    @override
    def init(self, history: History, limits: Limits) -> AdjustedMemory:
        return AdjustedMemory(self.init_adjustment(history, limits), self.base.init(history, limits))

    @final
    @override
    def update(self, extended: ExtendedHypotheses, memory: AdjustedMemory) -> AdjustedMemory:
        adjustment = self.update_adjustment(extended, memory.adjustment)
        return AdjustedMemory(adjustment, self.base.update(extended, memory.base))

    @final
    @override
    def score(self, log_probs: Values, lengths: Lengths, memory: AdjustedMemory) -> Values:
        base = self.base.score(log_probs, lengths, memory.base)
        return base + self.adjustment(lengths, memory.adjustment)

    @final
    @override
    def upper_bound(
        self, log_probs: Values, lengths: Lengths, max_length: int, memory: AdjustedMemory
    ) -> Values:
        base = self.base.upper_bound(log_probs, lengths, max_length, memory.base)
        return base + self.adjustment_bound(lengths, max_length, memory.adjustment)

    @final
    @override
    def partial_score(self, log_probs: Values, lengths: Lengths, memory: AdjustedMemory) -> Values:
        base = self.base.partial_score(log_probs, lengths, memory.base)
        return base + self.adjustment(lengths, memory.adjustment)


def check_adjusted(scorer: AdjustedScorer, weight: str) -> None:
    """Raise unless the field named `weight` is finite and at least 0, and the base is a scorer."""
    check_fields(scorer, **{weight: NON_NEGATIVE})
    check_scorer_type(type(scorer).__name__, "base", scorer.base)
