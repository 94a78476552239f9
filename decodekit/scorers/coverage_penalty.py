"""Coverage penalty for translation."""

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.scorers._shared.coverage import Coverage, CoverageScorer
from decodekit.scorers.base import Lengths, PathScorer, Values
from decodekit.scorers.gnmt import GNMTLengthPenalty


@final
@dataclass(frozen=True)
class CoveragePenalty(CoverageScorer):
    r"""Subtracts a penalty for source tokens whose total attention is below 1.

    $s(y) + \beta \sum_i \log \min\left(\sum_j p_{ij}, 1\right)$.
    $p_{ij}$ is the attention of new token $j$ to token $i$ of the source of an encoder-decoder, else of the
    prompt: the mean over the last layer's heads. The model must provide it, as `HFModel` does.

    Args:
        weight: $\beta$, at least 0; 0 leaves the base score unchanged. Usual values: 0.1-0.5.
        base: The scorer to adjust.
        stepwise: True: the penalty ranks unfinished hypotheses too.

    Raises:
        ValueError: If `weight` is not a finite number of at least 0.
        DecodekitError: In a run, if the model does not provide its attention.

    Example:
        >>> search = dk.BeamSearch(5, scorer=CoveragePenalty(0.2, base=GNMTLengthPenalty(0.6)))

    Source:
        Wu et al., 2016, https://arxiv.org/abs/1609.08144, equation 14.

    Hugging Face:
        None.
    """

    base: PathScorer = GNMTLengthPenalty(0.6)

    @override
    def adjustment(self, lengths: Lengths, memory: Coverage) -> Values:
        # Attention that underflows to 0 costs a finite amount.
        covered = memory.sums.clamp(min=torch.finfo(torch.float32).tiny, max=1.0).log()
        # In double precision: padding changes the order of the sum, which must not show.
        return self.weight * covered.masked_fill(~memory.valid, 0.0).sum(-1, dtype=torch.float64).float()

    @override
    def adjustment_bound(self, lengths: Lengths, max_length: int, memory: Coverage) -> Values:
        # The rest of a text may still cover everything.
        return torch.zeros_like(lengths, dtype=torch.float32)
