"""Rules that end a beam search."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.pytrees import Memory
from decodekit.core.validation import POSITIVE, CheckedOptions, check_fields
from decodekit.decoders.beam.state import BeamState
from decodekit.scorers.base import PathScorer


class SearchStatus(NamedTuple):
    """Status of a beam search after a step, for its stop rule.

    Attributes:
        live_log_probs: Sums of processed scores of each prompt's live hypotheses; minus infinity for none.
        lengths: Length of the live hypotheses, in new tokens.
        worst_finished: The lowest score in each prompt's finished set.
        full: True if the finished set has no empty slot.
        max_length: Maximum of new tokens.
        scorer: Scores the hypotheses.
        memory: The scorer's memory of the live hypotheses.
    """

    live_log_probs: Float32[Tensor, "batch beams"]
    lengths: Int64[Tensor, " batch"]
    worst_finished: Float32[Tensor, " batch"]
    full: Bool[Tensor, " batch"]
    max_length: int
    scorer: PathScorer
    memory: Memory

    @classmethod
    def of(cls, state: BeamState, scorer: PathScorer) -> "SearchStatus":
        """The status of a search."""
        return cls(
            live_log_probs=state.log_probs,
            lengths=state.step.expand(len(state.log_probs)),
            worst_finished=state.finished.scores[:, -1],
            full=state.finished.used.all(-1),
            max_length=state.limits.max_new_tokens,
            scorer=scorer,
            memory=state.memory,
        )

    def best_score(self) -> Float32[Tensor, " batch"]:
        """The best score that a live hypothesis would get if it ended now."""
        return self._best(self.scorer.score(self.live_log_probs.flatten(), self._row_lengths(), self.memory))

    def bound(self) -> Float32[Tensor, " batch"]:
        """Upper bound on the score of every continuation of a live hypothesis."""
        log_probs = self.live_log_probs.flatten()
        return self._best(
            self.scorer.upper_bound(log_probs, self._row_lengths(), self.max_length, self.memory)
        )

    def _row_lengths(self) -> Int64[Tensor, " rows"]:
        return self.lengths.repeat_interleave(self.live_log_probs.shape[1])

    def _best(self, scores: Float32[Tensor, " rows"]) -> Float32[Tensor, " batch"]:
        is_unused = self.live_log_probs == -torch.inf
        return scores.view_as(self.live_log_probs).masked_fill(is_unused, -torch.inf).amax(-1)


class StopRule(CheckedOptions, ABC):
    """Decides for each prompt if the search goes on. A search that has stopped does not start again."""

    batch_independent: bool = False
    """True if every prompt is treated on its own: see `Decoder.batch_independent`."""

    def capacity(self, beams: int) -> int:
        """Slots of a prompt's finished set."""
        return beams

    @abstractmethod
    def should_continue(self, status: SearchStatus) -> Bool[Tensor, " batch"]:
        """True for prompts on which the search goes on."""


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

    @override
    def should_continue(self, status: SearchStatus) -> Bool[Tensor, " batch"]:
        return ~status.full


@final
@dataclass(frozen=True)
class Heuristic(StopRule):
    """Stops when the best live hypothesis, if it ended now, would not enter the full finished set.

    Not exact: under a length penalty above 0 a hypothesis that scores worse now may score better once it is
    longer. `Proved` waits for that.

    Example:
        >>> dk.BeamSearch(4, stop_rule=Heuristic()).stop_rule
        Heuristic()

    Hugging Face:
        `early_stopping=False`, the default.
    """

    batch_independent = True

    @override
    def should_continue(self, status: SearchStatus) -> Bool[Tensor, " batch"]:
        return ~status.full | (status.best_score() > status.worst_finished)


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

    @override
    def should_continue(self, status: SearchStatus) -> Bool[Tensor, " batch"]:
        return ~status.full | (status.bound() > status.worst_finished)


@final
@dataclass(frozen=True)
class Patience(StopRule):
    """Stops when `round(factor * beams)` hypotheses have finished.

    A factor of 1 equals `WhenFull`; a larger one searches longer and keeps more hypotheses to choose from.

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
        check_fields(self, factor=POSITIVE)

    @override
    def capacity(self, beams: int) -> int:
        # rounded half up, unlike `round`
        return max(1, math.floor(self.factor * beams + 0.5))

    @override
    def should_continue(self, status: SearchStatus) -> Bool[Tensor, " batch"]:
        return ~status.full
