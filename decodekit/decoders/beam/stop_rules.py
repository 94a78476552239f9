"""When a beam search stops looking for better hypotheses."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.pytrees import Memory
from decodekit.scorers.base import PathScorer


class SearchStatus(NamedTuple):
    """How a beam search stands after a step.

    Attributes:
        live: The log-probabilities of each prompt's unfinished hypotheses; minus infinity: there is none.
        lengths: Their length in new tokens.
        worst_finished: The lowest score in each prompt's set of finished hypotheses.
        full: Whether that set has as many as it may hold.
        max_length: New tokens at most.
        scorer: What hypotheses are worth.
        memory: What the scorer remembers of the unfinished ones.
    """

    live: Float32[Tensor, "batch beams"]
    lengths: Int64[Tensor, " batch"]
    worst_finished: Float32[Tensor, " batch"]
    full: Bool[Tensor, " batch"]
    max_length: int
    scorer: PathScorer
    memory: Memory

    def now(self) -> Float32[Tensor, " batch"]:
        """The score of the best unfinished hypothesis, if it ended as it is."""
        scores = self.scorer.score(self.live.flatten(), self._each_length(), self.memory)
        return self._best(scores)

    def bound(self) -> Float32[Tensor, " batch"]:
        """What no continuation of an unfinished hypothesis scores more than."""
        most = self.scorer.upper_bound(self.live.flatten(), self._each_length(), self.max_length, self.memory)
        return self._best(most)

    def _each_length(self) -> Int64[Tensor, " rows"]:
        return self.lengths.repeat_interleave(self.live.shape[1])

    def _best(self, worth: Float32[Tensor, " rows"]) -> Float32[Tensor, " batch"]:
        return worth.view_as(self.live).masked_fill(self.live == -torch.inf, -torch.inf).amax(-1)


class StopRule(ABC):
    """Decides for each prompt whether the search goes on. Once it stops, it stays stopped."""

    batch_independent: bool = False
    """True where every prompt is treated alone: see `Decoder.batch_independent`."""

    def capacity(self, beams: int) -> int:
        """How many finished hypotheses a prompt may have."""
        return beams

    @abstractmethod
    def goes_on(self, status: SearchStatus) -> Bool[Tensor, " batch"]:
        """True for the prompts that are still worth a step."""


@final
@dataclass(frozen=True)
class WhenFull(StopRule):
    """Stops as soon as there are as many finished hypotheses as beams.

    Example:
        >>> dk.BeamSearch(4, stop_rule=WhenFull()).stop_rule
        WhenFull()

    Hugging Face:
        `early_stopping=True`.
    """

    batch_independent = True

    def goes_on(self, status: SearchStatus) -> Bool[Tensor, " batch"]:
        """Until the set is full."""
        return ~status.full


@final
@dataclass(frozen=True)
class Heuristic(StopRule):
    """Stops when the best unfinished hypothesis, ended now, would not enter the full finished set.

    Not exact: a hypothesis that looks worse now may, under a length penalty above 0, score better
    once it is longer. `Proved` waits for that.

    Example:
        >>> dk.BeamSearch(4, stop_rule=Heuristic()).stop_rule
        Heuristic()

    Hugging Face:
        `early_stopping=False`, the default.
    """

    batch_independent = True

    def goes_on(self, status: SearchStatus) -> Bool[Tensor, " batch"]:
        """Until the set is full and the best live hypothesis, as it is, would not enter it."""
        return ~status.full | (status.now() > status.worst_finished)


@final
@dataclass(frozen=True)
class Proved(StopRule):
    """Stops when the scorer's bound proves that no live hypothesis can enter the full finished set.

    Example:
        >>> dk.BeamSearch(4, stop_rule=Proved()).stop_rule
        Proved()

    Hugging Face:
        `early_stopping="never"`.
    """

    batch_independent = True

    def goes_on(self, status: SearchStatus) -> Bool[Tensor, " batch"]:
        """Until the set is full and nothing can become good enough for it."""
        return ~status.full | (status.bound() > status.worst_finished)


@final
@dataclass(frozen=True)
class Patience(StopRule):
    """Stops when `round(factor * beams)` hypotheses have finished.

    With factor 1 the same as `WhenFull`; above 1 it looks longer and keeps more to choose from.

    Args:
        factor: Above 0. Usual values: 1-2.

    Raises:
        ValueError: If `factor` is not a finite number above 0.

    Example:
        >>> Patience(1.5).capacity(beams=4)
        6

    Source:
        Kasai et al., 2022, https://arxiv.org/abs/2204.05424, section 2.

    Hugging Face:
        None. CTranslate2 calls it `patience`.
    """

    factor: float

    batch_independent = True

    def __post_init__(self) -> None:
        if not (isinstance(self.factor, Real) and 0 < self.factor < float("inf")):
            raise ValueError(f"Patience: factor must be a finite number above 0, got {self.factor!r}.")

    def capacity(self, beams: int) -> int:
        """`factor * beams`, rounded half up, at least 1."""
        return max(1, math.floor(self.factor * beams + 0.5))

    def goes_on(self, status: SearchStatus) -> Bool[Tensor, " batch"]:
        """Until the set is full."""
        return ~status.full
