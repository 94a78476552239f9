"""Whether a beam search has found the best there is."""

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from decodekit.decoders.beam.candidates import Candidates
from decodekit.decoders.beam.expansion import BestExpansion, Expansion
from decodekit.decoders.beam.state import BeamState
from decodekit.scorers.base import PathScorer


def update_pruned_bound(
    candidates: Candidates,
    dropped: Bool[Tensor, "batch candidates"],
    scores: Float32[Tensor, "rows vocab"],
    state: BeamState,
    scorer: PathScorer,
    expansion: Expansion,
) -> Float32[Tensor, " batch"]:
    """What nothing that the search has let go of scores more than, this step's continuations included.

    Args:
        candidates: The continuations that the step looked at.
        dropped: Those of them that neither went on nor could finish.
        scores: What each token added.
        state: Of the search, before the step.
        scorer: What hypotheses are worth.
        expansion: How the candidates were chosen.
    """
    batch, beams = state.log_probs.shape
    pruned_bound = candidates.bounds.masked_fill(~dropped, -torch.inf).amax(-1)
    if candidates.log_probs.shape[1] < beams * scores.shape[-1]:
        # Nothing is known of continuations beyond the candidates, but that none had a greater sum, and that
        # says something only where the bound is one of sums.
        beyond = torch.full_like(pruned_bound, torch.inf)
        if isinstance(expansion, BestExpansion):
            beyond = beyond if scorer.stateful else candidates.bounds[:, -1]
            beyond = beyond.masked_fill(candidates.log_probs.amin(-1) == -torch.inf, -torch.inf)
        pruned_bound = pruned_bound.maximum(beyond)
    # The bound takes for granted that a token adds at most 0.
    rises = (scores.amax(-1).view(batch, beams) > 0) & (state.log_probs > -torch.inf)
    pruned_bound = pruned_bound.masked_fill(rises.any(-1), torch.inf)
    return torch.where(state.open, state.pruned_bound.maximum(pruned_bound), state.pruned_bound)
