"""Which continuations a constrained beam search looks at, and which of them get a place."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.decoders.beam.expansion import BestExpansion, Expansion, ExpansionResult


@final
@dataclass(frozen=True, eq=False)
class AheadExpansion(Expansion):
    """Looks at the best continuations, the best token of every beam, and those that lead ahead.

    Args:
        ids: The tokens that bring every beam closer to what it must contain; -1: none.
    """

    ids: Int64[Tensor, "batch beams next"]

    batch_independent = True

    def pick(self, log_probs: Float32[Tensor, "batch beams vocab"], number: int) -> ExpansionResult:
        """Each once, best first."""
        _, beams, vocab = log_probs.shape
        best = BestExpansion().pick(log_probs, number).flat
        first = vocab * torch.arange(beams, device=log_probs.device)[:, None]
        is_id = self.ids >= 0
        tokens = torch.cat([log_probs.argmax(-1, keepdim=True), self.ids.masked_fill(~is_id, 0)], -1)
        flat = torch.cat([best, (first + tokens).flatten(1)], 1)
        is_none = torch.cat([torch.zeros_like(tokens[..., :1], dtype=torch.bool), ~is_id], -1).flatten(1)
        sums = log_probs.flatten(1).gather(1, flat)
        # What stands further before is there already: [batch candidates candidates]
        is_same = flat[:, :, None] == flat[:, None, :]
        twice = is_same.tril(-1)[:, best.shape[1] :].any(-1) | is_none
        left_out = torch.cat([torch.zeros_like(best, dtype=torch.bool), twice], 1)
        priority, order = sums.masked_fill(left_out, -torch.inf).sort(descending=True, stable=True)
        return ExpansionResult(flat.gather(1, order), priority)


def allocate(
    missing: Int64[Tensor, "batch candidates"], can: Bool[Tensor, "batch candidates"]
) -> Int64[Tensor, "batch candidates"]:
    """The place of each candidate: in turn the best of every bank, then the second of every bank, and so on.

    A bank is what misses equally many tokens; the one that misses the fewest comes first. So places are
    divided evenly, those that a bank does not need go to the others, and progress is never lost.

    Args:
        missing: Tokens that each candidate misses; the candidates are ordered, best first.
        can: Those that may have a place at all; the others come last.
    """
    number = missing.shape[1]
    # [batch candidates candidates]: those of the same bank that are better
    better = ((missing[:, :, None] == missing[:, None, :]) & can[:, None, :]).tril(-1)
    rank = better.sum(-1)
    # By rank, then by bank: a stable sort by the bank first keeps it among equal ranks.
    by_bank = missing.argsort(dim=-1, stable=True)
    ranks = rank.masked_fill(~can, number).gather(1, by_bank)
    order = by_bank.gather(1, ranks.argsort(dim=-1, stable=True))
    return torch.empty_like(order).scatter(
        1, order, torch.arange(number, device=order.device).expand_as(order)
    )
