"""Dynamic beam allocation: candidates that satisfy constraints, and a share of the beams for each bank."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.decoders.beam.expansion import BestExpansion, Expansion, ExpansionResult


@final
@dataclass(frozen=True, eq=False)
class ConstraintExpansion(Expansion):
    """Picks the best continuations, the best token of every beam, and tokens that advance a constraint."""

    next_ids: Int64[Tensor, "batch beams next"]  # that advance a constraint of the beam, padded with -1

    batch_independent = True

    @override
    def pick(self, log_probs: Float32[Tensor, "batch beams vocab"], number: int) -> ExpansionResult:
        _, beams, vocab = log_probs.shape
        best = BestExpansion().pick(log_probs, number).indices
        first = vocab * torch.arange(beams, device=log_probs.device)[:, None]
        is_id = self.next_ids >= 0
        tokens = torch.cat([log_probs.argmax(-1, keepdim=True), self.next_ids.masked_fill(~is_id, 0)], -1)
        indices = torch.cat([best, (first + tokens).flatten(1)], 1)
        is_none = torch.cat([torch.zeros_like(tokens[..., :1], dtype=torch.bool), ~is_id], -1).flatten(1)
        sums = log_probs.flatten(1).gather(1, indices)
        # Leave out continuations that an earlier column holds already: [batch candidates candidates]
        is_same = indices[:, :, None] == indices[:, None, :]
        left_out = is_same.tril(-1)[:, best.shape[1] :].any(-1) | is_none
        left_out = torch.cat([torch.zeros_like(best, dtype=torch.bool), left_out], 1)
        priority, order = sums.masked_fill(left_out, -torch.inf).sort(descending=True, stable=True)
        return ExpansionResult(indices.gather(1, order), priority)


def allocate(
    missing: Int64[Tensor, "batch candidates"], feasible: Bool[Tensor, "batch candidates"]
) -> Int64[Tensor, "batch candidates"]:
    """Rank of each candidate: the best of every bank, then the second of every bank, and so on.

    A bank holds the candidates that miss equally many tokens, best first. Banks that miss fewer come
    first. So the banks share the beams evenly, beams that one bank does not need go to
    others, and progress is never lost. Candidates that are not feasible rank last.
    """
    number = missing.shape[1]
    # Better candidates of the same bank: [batch candidates candidates]
    better = ((missing[:, :, None] == missing[:, None, :]) & feasible[:, None, :]).tril(-1)
    rank_in_bank = better.sum(-1).masked_fill(~feasible, number)
    # Order by rank, then by bank: the second sort is stable.
    by_bank = missing.argsort(dim=-1, stable=True)
    order = by_bank.gather(1, rank_in_bank.gather(1, by_bank).argsort(dim=-1, stable=True))
    ranks = torch.arange(number, device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, ranks)
