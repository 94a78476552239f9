"""What a beam search writes down about its hypotheses, token by token."""

from typing import NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.decoders.base import write_column


class Entry(NamedTuple):
    """One new token of some hypotheses, as `Records` keep it."""

    token: Int64[Tensor, "batch hyps"]
    log_prob: Float32[Tensor, "batch hyps"]
    parent: Int64[Tensor, "batch hyps"]

    def take(self, hyps: Int64[Tensor, "batch chosen"]) -> "Entry":
        """The entries of the chosen hypotheses."""
        return Entry(*(field.gather(1, hyps) for field in self))


class Records(NamedTuple):
    """What is written down about every new token of some hypotheses."""

    tokens: Int64[Tensor, "batch hyps new"]
    log_probs: Float32[Tensor, "batch hyps new"]  # the model's own
    parents: Int64[Tensor, "batch hyps new"]  # the row each token was chosen on

    @classmethod
    def empty(cls, batch: int, hyps: int, new: int, device: torch.device) -> "Records":
        """Nothing written yet."""
        tokens = torch.zeros(batch, hyps, new, dtype=torch.long, device=device)
        return cls(tokens, torch.zeros_like(tokens, dtype=torch.float32), tokens.clone())

    def take(self, hyps: Int64[Tensor, "batch chosen"]) -> "Records":
        """The records of the chosen hypotheses."""
        index = hyps[..., None].expand(-1, -1, self.tokens.shape[-1])
        return Records(*(buffer.gather(1, index) for buffer in self))

    def write(self, step: Int64[Tensor, ""], entry: Entry, where: Tensor | None = None) -> "Records":
        """The records with one more token."""
        return Records(*(write_column(old, step, new, where) for old, new in zip(self, entry, strict=True)))

    def beside(self, others: "Records") -> "Records":
        """These hypotheses, then the others."""
        return Records(*(torch.cat(pair, 1) for pair in zip(self, others, strict=True)))
