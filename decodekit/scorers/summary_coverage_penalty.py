"""The coverage penalty of summaries."""

from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from decodekit.history import History
from decodekit.limits import Limits
from decodekit.reveal import Reveal
from decodekit.scorers.adjusted import AdjustedScorer, check_weight
from decodekit.scorers.base import Growth, PathScorer
from decodekit.scorers.coverage import Coverage
from decodekit.scorers.length_penalty import LengthPenalty


@final
@dataclass(frozen=True)
class SummaryCoveragePenalty(AdjustedScorer):
    r"""Takes off what hypotheses attend to more than once: no part of the source should be told twice.

    $s(y) - \beta \sum_i \left(\max\left(\sum_j p_{ij}, 1\right) - 1\right)$.
    $p_{ij}$ is the attention of new token $j$ to token $i$ of the source of an encoder-decoder, else of the
    prompt: the mean of the last layer's heads. The model must show it, as `HFModel` does.

    Args:
        weight: $\beta$, at least 0; 0 is the base alone. Usual values: 1-10.
        base: What the penalty is taken from.
        stepwise: Ranks unfinished hypotheses so as well, not only finished ones.

    Raises:
        ValueError: If `weight` is not a finite number of at least 0.
        DecodekitError: In a run, if the model does not show its attention.

    Example:
        >>> search = dk.BeamSearch(5, scorer=SummaryCoveragePenalty(5.0, stepwise=True))

    Source:
        Gehrmann, Deng & Rush, 2018, https://arxiv.org/abs/1808.10792, section 5.

    Hugging Face:
        None.
    """

    weight: float
    _: KW_ONLY
    base: PathScorer = LengthPenalty(1.0)
    stepwise: bool = False

    def __post_init__(self) -> None:
        check_weight(self, "weight", self.weight)
        if not isinstance(self.stepwise, bool):
            raise ValueError(  # noqa: TRY004 - as every argument out of range
                f"SummaryCoveragePenalty: stepwise must be True or False, got {self.stepwise!r:.80}."
            )

    @property
    def guides(self) -> bool:
        """Where it was asked for."""
        return self.stepwise

    @property
    def own_reveal(self) -> Reveal:
        """The attention."""
        return Reveal(attention=True)

    def begin(self, history: History, limits: Limits) -> Coverage:
        """Nothing is covered."""
        return Coverage.start(history, limits)

    def grow(self, growth: Growth, memory: Coverage) -> Coverage:
        """The attention of one token more."""
        return memory.add(growth)

    def adjustment(
        self,
        lengths: Int64[Tensor, " hyps"],  # noqa: ARG002 - the contract's signature
        memory: Coverage,
    ) -> Float[Tensor, " hyps"]:
        """The penalty, at most 0."""
        excess = (memory.sums - 1).clamp(min=0).masked_fill(~memory.valid, 0.0)
        # In double precision, so that padding, which moves the terms of the sum, does not show.
        return -self.weight * excess.sum(-1, dtype=torch.float64).float()

    def most(
        self,
        lengths: Int64[Tensor, " hyps"],
        max_length: int,  # noqa: ARG002 - the contract's signature
        memory: Coverage,
    ) -> Float[Tensor, " hyps"]:
        """The penalty so far, which can only grow."""
        return self.adjustment(lengths, memory)
