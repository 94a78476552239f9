"""Penalties on the attention to each token of the source, or of the prompt."""

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.validation import FLAG, check_fields
from decodekit.errors import DecodekitError
from decodekit.models.protocols import ModelOutputsSpec
from decodekit.scorers.adjusted import AdjustedScorer, check_adjusted
from decodekit.scorers.base import ExtendedHypotheses, PathScorer
from decodekit.scorers.log_prob import LogProb


class Coverage(NamedTuple):
    """Attention to each column of the source or prompt, summed over the new tokens."""

    sums: Float[Tensor, "hyps context"]
    valid: Bool[Tensor, "hyps context"]  # False for padding


@dataclass(frozen=True)
class CoverageScorer(AdjustedScorer):
    """Subtracts a penalty on the coverage of a hypothesis from another score."""

    weight: float
    _: KW_ONLY
    base: PathScorer = LogProb()
    stepwise: bool = False

    batch_independent = True

    def __post_init__(self) -> None:
        check_adjusted(self, "weight")
        check_fields(self, stepwise=FLAG)

    @property
    @override
    def adjustment_spec(self) -> ModelOutputsSpec:
        return ModelOutputsSpec(attention=True)

    @override
    def init_adjustment(self, history: History, limits: Limits) -> Coverage:
        valid = history.valid[:, : limits.prompt_length]
        if history.source is not None:
            valid = history.to_rows(history.source.valid)
        return Coverage(torch.zeros_like(valid, dtype=torch.float32), valid)

    @override
    def update_adjustment(self, extended: ExtendedHypotheses, memory: Coverage) -> Coverage:
        attention, sums = extended.attention, memory.sums
        if attention is None or attention.shape != sums.shape:
            raise DecodekitError(
                f"Coverage: the model must return {len(sums)} hypotheses' attention to each of the "
                f"{sums.shape[1]} columns of the source or prompt, got "
                f"{None if attention is None else tuple(attention.shape)}."
            )
        return memory._replace(sums=sums + attention)
