"""Coverage penalty for summaries."""

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.scorers._shared.coverage import Coverage, CoverageScorer
from decodekit.scorers.base import Lengths, PathScorer, Values
from decodekit.scorers.length_penalty import LengthPenalty


@final
@dataclass(frozen=True)
class SummaryCoveragePenalty(CoverageScorer):
    r"""Subtracts a penalty for source tokens whose total attention is above 1.

    $s(y) - \beta \sum_i \left(\max\left(\sum_j p_{ij}, 1\right) - 1\right)$.
    $p_{ij}$ is the attention of new token $j$ to token $i$ of the source of an encoder-decoder, else of the
    prompt: the mean over the last layer's heads. The model must provide it, as `HFModel` does.

    Args:
        weight: $\beta$, at least 0; 0 leaves the base score unchanged. Usual values: 1-10.
        base: The scorer to adjust.
        stepwise: True: the penalty ranks unfinished hypotheses too.

    Raises:
        ValueError: If `weight` is not a finite number of at least 0.
        DecodekitError: In a run, if the model does not provide its attention.

    Example:
        >>> search = dk.BeamSearch(5, scorer=SummaryCoveragePenalty(5.0, stepwise=True))

    Source:
        Gehrmann, Deng & Rush, 2018, https://arxiv.org/abs/1808.10792, section 5.

    Hugging Face:
        None.
    """

    base: PathScorer = LengthPenalty(1.0)

    @override
    def adjustment(self, lengths: Lengths, memory: Coverage) -> Values:
        excess = (memory.sums - 1).clamp(min=0).masked_fill(~memory.valid, 0.0)
        # In double precision: padding changes the order of the sum, which must not show.
        return -self.weight * excess.sum(-1, dtype=torch.float64).float()

    @override
    def adjustment_bound(self, lengths: Lengths, max_length: int, memory: Coverage) -> Values:
        return self.adjustment(lengths, memory)  # the excess can only grow
