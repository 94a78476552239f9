"""Scorers that add something to what another scorer says."""

from abc import abstractmethod
from typing import NamedTuple, final

from jaxtyping import Float, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.pytrees import Memory
from decodekit.core.validation import is_finite
from decodekit.models.model_outputs import LOGITS_ONLY, ModelOutputsSpec
from decodekit.scorers.base import ExtendedHypotheses, PathScorer


class Remembered(NamedTuple):
    """What a scorer remembers, and what the scorer that it adds to does."""

    own: Memory
    base: Memory


class AdjustedScorer(PathScorer):
    """A scorer that adds a reward, or takes off a penalty, from what another scorer says.

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
        """What the model must show for the adjustment. By default nothing."""
        return LOGITS_ONLY

    @abstractmethod
    def init_adjustment(self, history: History, limits: Limits) -> Memory:
        """As `PathScorer.init`, for what the adjustment needs."""

    @abstractmethod
    def update_adjustment(self, extended: ExtendedHypotheses, memory: Memory) -> Memory:
        """As `PathScorer.extend`, for what the adjustment needs."""

    @abstractmethod
    def adjustment(self, lengths: Int64[Tensor, " hyps"], memory: Memory) -> Float[Tensor, " hyps"]:
        """What is added."""

    @abstractmethod
    def adjustment_bound(
        self, lengths: Int64[Tensor, " hyps"], max_length: int, memory: Memory
    ) -> Float[Tensor, " hyps"]:
        """What is added at most, now or after any continuation."""

    @final
    @property
    def outputs_spec(self) -> ModelOutputsSpec:
        """What both ask for."""
        return self.adjustment_spec | self.base.outputs_spec

    @final
    def init(self, history: History, limits: Limits) -> Remembered:
        """Both begin."""
        return Remembered(self.init_adjustment(history, limits), self.base.init(history, limits))

    @final
    def update(self, extended: ExtendedHypotheses, memory: Remembered) -> Remembered:
        """Both go on."""
        return Remembered(
            self.update_adjustment(extended, memory.own), self.base.update(extended, memory.base)
        )

    @final
    def score(
        self, log_probs: Float[Tensor, " hyps"], lengths: Int64[Tensor, " hyps"], memory: Remembered
    ) -> Float[Tensor, " hyps"]:
        """The base's score, adjusted."""
        return self.base.score(log_probs, lengths, memory.base) + self.adjustment(lengths, memory.own)

    @final
    def upper_bound(
        self,
        log_probs: Float[Tensor, " hyps"],
        lengths: Int64[Tensor, " hyps"],
        max_length: int,
        memory: Remembered,
    ) -> Float[Tensor, " hyps"]:
        """The base's bound and the most that is added."""
        bound = self.base.upper_bound(log_probs, lengths, max_length, memory.base)
        return bound + self.adjustment_bound(lengths, max_length, memory.own)

    @final
    def partial_score(
        self, log_probs: Float[Tensor, " hyps"], lengths: Int64[Tensor, " hyps"], memory: Remembered
    ) -> Float[Tensor, " hyps"]:
        """The base's guide, adjusted."""
        return self.base.partial_score(log_probs, lengths, memory.base) + self.adjustment(lengths, memory.own)


def check_weight(scorer: AdjustedScorer, name: str, weight: object) -> None:
    """Raises unless the weight is a finite number of at least 0, and the base a scorer."""
    who = type(scorer).__name__
    if not is_finite(weight) or weight < 0:
        raise ValueError(f"{who}: {name} must be a finite number of at least 0, got {weight!r}.")
    if not isinstance(scorer.base, PathScorer):
        raise TypeError(f"{who}: base must be a Scorer or PathScorer, got {scorer.base!r:.80}.")
