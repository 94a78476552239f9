"""How much of the source, or the prompt, the tokens of a hypothesis have attended to."""

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.errors import DecodekitError
from decodekit.models.model_outputs import ModelOutputsSpec
from decodekit.scorers.adjusted import AdjustedScorer, check_weight
from decodekit.scorers.base import ExtendedHypotheses, PathScorer
from decodekit.scorers.log_prob import LogProb


class Coverage(NamedTuple):
    """What every hypothesis has attended to.

    Attributes:
        sums: The attention to each token, summed over the new tokens.
        valid: Which columns hold tokens.
    """

    sums: Float[Tensor, "hyps context"]
    valid: Bool[Tensor, "hyps context"]

    @classmethod
    def start(cls, history: History, limits: Limits) -> "Coverage":
        """Nothing yet: of the source, if an encoder has read one, else of the prompt."""
        valid = history.valid[:, : limits.prompt_length]
        if history.source is not None:
            valid = history.spread(history.source.valid)
        return cls(torch.zeros_like(valid, dtype=torch.float32), valid)

    def add(self, extended: ExtendedHypotheses) -> "Coverage":
        """The attention of one token more."""
        if extended.attention is None or extended.attention.shape != self.sums.shape:
            seen = None if extended.attention is None else tuple(extended.attention.shape)
            raise DecodekitError(
                f"Coverage: the model must show {len(self.sums)} hypotheses' attention to each of the "
                f"{self.sums.shape[1]} columns of the source or prompt, got {seen}."
            )
        return self._replace(sums=self.sums + extended.attention)


@dataclass(frozen=True)
class CoverageScorer(AdjustedScorer):
    """Takes a penalty off a base by what a hypothesis's tokens have attended to."""

    weight: float
    _: KW_ONLY
    base: PathScorer = LogProb()
    stepwise: bool = False

    def __post_init__(self) -> None:
        check_weight(self, "weight", self.weight)
        if not isinstance(self.stepwise, bool):
            raise ValueError(  # noqa: TRY004 - as every argument out of range
                f"{type(self).__name__}: stepwise must be True or False, got {self.stepwise!r:.80}."
            )

    @property
    def adjustment_spec(self) -> ModelOutputsSpec:
        """The attention."""
        return ModelOutputsSpec(attention=True)

    def init_adjustment(self, history: History, limits: Limits) -> Coverage:
        """Nothing is covered."""
        return Coverage.start(history, limits)

    def update_adjustment(self, extended: ExtendedHypotheses, memory: Coverage) -> Coverage:
        """The attention of one token more."""
        return memory.add(extended)
