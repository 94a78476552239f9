"""Proofs of optimality: bounds on the scores of hypotheses that a search has pruned."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from decodekit.decoders.beam.expansion import BestExpansion, Expansion
from decodekit.decoders.beam.state import BeamState
from decodekit.decoders.beam.step import Candidates
from decodekit.scorers.base import PathScorer


@dataclass(frozen=True, eq=False)
class Certificate:
    """Proof that a search has found the best hypotheses: `Decoded.report` of `BeamSearch` and exact searches.

    It holds under the scorer, within `max_new_tokens`, among the sequences that the processors allow. It
    requires that no log-probability is above 0 after the processors; once one is, `bound` is infinity.

    Attributes:
        bound: Upper bound on the score of every hypothesis that was not returned; infinity if none is known.
        worst: Score of the last hypothesis asked for; minus infinity where fewer exist.
        nodes: Number of prefixes that the search has expanded; None where it does not count them.

    Example:
        >>> out = dk.decode(dk.testing.HashModel(3), [[0]], dk.BeamSearch(9), max_new_tokens=2)
        >>> out.report.proved
        tensor([True])
    """

    bound: Float[Tensor, " batch"]
    worst: Float[Tensor, " batch"]
    nodes: Int64[Tensor, " batch"] | None = None

    @property
    def proved(self) -> Bool[Tensor, " batch"]:
        """True if no other hypothesis scores more than the last one returned."""
        return self.worst >= self.bound

    @property
    def gap(self) -> Float[Tensor, " batch"]:
        """Upper bound on how much more another hypothesis scores than the last returned; 0 if proved."""
        return torch.where(self.proved, 0.0, self.bound - self.worst)


def update_pruned_bound(
    candidates: Candidates,
    pruned: Bool[Tensor, "batch candidates"],
    scores: Float32[Tensor, "rows vocab"],
    state: BeamState,
    scorer: PathScorer,
    expansion: Expansion,
) -> Float32[Tensor, " batch"]:
    """Upper bound on the score of all hypotheses pruned so far, those of this step included.

    `pruned` marks candidates that neither go on nor compete for the finished set; `state` is from before.
    """
    batch, beams = state.log_probs.shape
    bound = candidates.bounds.masked_fill(~pruned, -torch.inf).amax(-1)
    if candidates.log_probs.shape[1] < beams * scores.shape[-1]:
        # No continuation beyond the candidates has a greater sum than the last of them. So its bound holds
        # for them too, if candidates are chosen by their sums and the scorer's bound depends on sums alone.
        rest = torch.full_like(bound, torch.inf)
        if isinstance(expansion, BestExpansion):
            rest = rest if scorer.stateful else candidates.bounds[:, -1]
            rest = rest.masked_fill(candidates.log_probs.amin(-1) == -torch.inf, -torch.inf)
        bound = bound.maximum(rest)
    # Bounds assume that a token adds at most 0 to the sum.
    is_above_zero = (scores.amax(-1).view(batch, beams) > 0) & (state.log_probs > -torch.inf)
    bound = bound.masked_fill(is_above_zero.any(-1), torch.inf)
    return torch.where(state.active, state.pruned_bound.maximum(bound), state.pruned_bound)
