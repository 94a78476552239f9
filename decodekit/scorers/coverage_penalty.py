"""The coverage penalty of translation."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from decodekit.scorers._shared.coverage import Coverage, CoverageScorer
from decodekit.scorers.base import PathScorer
from decodekit.scorers.gnmt import GNMTLengthPenalty


@final
@dataclass(frozen=True)
class CoveragePenalty(CoverageScorer):
    r"""Takes off what hypotheses leave out of the source: each of its tokens should be attended to.

    $s(y) + \beta \sum_i \log \min\left(\sum_j p_{ij}, 1\right)$.
    $p_{ij}$ is the attention of new token $j$ to token $i$ of the source of an encoder-decoder, else of the
    prompt: the mean of the last layer's heads. The model must show it, as `HFModel` does.

    Args:
        weight: $\beta$, at least 0; 0 is the base alone. Usual values: 0.1-0.5.
        base: What the penalty is taken from.
        stepwise: Ranks unfinished hypotheses so as well, not only finished ones.

    Raises:
        ValueError: If `weight` is not a finite number of at least 0.
        DecodekitError: In a run, if the model does not show its attention.

    Example:
        >>> search = dk.BeamSearch(5, scorer=CoveragePenalty(0.2, base=GNMTLengthPenalty(0.6)))

    Source:
        Wu et al., 2016, https://arxiv.org/abs/1609.08144, equation 14.

    Hugging Face:
        None.
    """

    base: PathScorer = GNMTLengthPenalty(0.6)

    batch_independent = True

    def adjustment(
        self,
        lengths: Int64[Tensor, " hyps"],  # noqa: ARG002 - the contract's signature
        memory: Coverage,
    ) -> Float[Tensor, " hyps"]:
        """The penalty, at most 0."""
        # Attention that underflows to 0 costs much, and not everything.
        covered = memory.sums.clamp(min=torch.finfo(torch.float32).tiny, max=1.0).log()
        # In double precision, so that padding, which moves the terms of the sum, does not show.
        return self.weight * covered.masked_fill(~memory.valid, 0.0).sum(-1, dtype=torch.float64).float()

    def adjustment_bound(
        self,
        lengths: Int64[Tensor, " hyps"],
        max_length: int,  # noqa: ARG002 - the contract's signature
        memory: Coverage,  # noqa: ARG002
    ) -> Float[Tensor, " hyps"]:
        """Nothing: all may yet be covered."""
        return torch.zeros_like(lengths, dtype=torch.float32)
