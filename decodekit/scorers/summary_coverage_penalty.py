"""The coverage penalty of summaries."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from decodekit.scorers._shared.coverage import Coverage, CoverageScorer
from decodekit.scorers.base import PathScorer
from decodekit.scorers.length_penalty import LengthPenalty


@final
@dataclass(frozen=True)
class SummaryCoveragePenalty(CoverageScorer):
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

    base: PathScorer = LengthPenalty(1.0)

    batch_independent = True

    def adjustment(
        self,
        lengths: Int64[Tensor, " hyps"],  # noqa: ARG002 - the contract's signature
        memory: Coverage,
    ) -> Float[Tensor, " hyps"]:
        """The penalty, at most 0."""
        excess = (memory.sums - 1).clamp(min=0).masked_fill(~memory.valid, 0.0)
        # In double precision, so that padding, which moves the terms of the sum, does not show.
        return -self.weight * excess.sum(-1, dtype=torch.float64).float()

    def adjustment_bound(
        self,
        lengths: Int64[Tensor, " hyps"],
        max_length: int,  # noqa: ARG002 - the contract's signature
        memory: Coverage,
    ) -> Float[Tensor, " hyps"]:
        """The penalty so far, which can only grow."""
        return self.adjustment(lengths, memory)
