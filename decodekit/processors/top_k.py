"""Top-k truncation."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.history import History
from decodekit.processors.base import StatelessProcessor, is_count


@final
@dataclass(frozen=True)
class TopK(StatelessProcessor):
    """Bans every token but the k likeliest.

    Tokens tied with the k-th all survive, so more than k can. Does not change the argmax.

    Args:
        k: Tokens to keep, at least 1; more than the vocabulary keeps all. Usual values: 10-100.
        min_tokens_to_keep: Keeps this many even if `k` is smaller.

    Raises:
        ValueError: If either is not an integer of at least 1.

    Example:
        >>> TopK(2)(torch.tensor([[0]]), torch.tensor([[3.0, 1.0, 2.0]]))
        tensor([[3., -inf, 2.]])

    Source:
        Fan, Lewis & Dauphin, 2018, https://arxiv.org/abs/1805.04833, section 5.4.

    Hugging Face:
        `TopKLogitsWarper(k, min_tokens_to_keep=...)`, bit for bit.
    """

    k: int
    min_tokens_to_keep: int = 1

    argmax_invariant = True

    def __post_init__(self) -> None:
        if not is_count(self.k, 1):
            raise ValueError(f"TopK: k must be an integer of at least 1, got {self.k!r}.")
        if not is_count(self.min_tokens_to_keep, 1):
            raise ValueError(
                f"TopK: min_tokens_to_keep must be an integer of at least 1, got {self.min_tokens_to_keep!r}."
            )

    def process(
        self,
        history: History,  # noqa: ARG002 - the contract's signature
        scores: Float32[Tensor, "rows vocab"],
    ) -> Float32[Tensor, "rows vocab"]:
        """The scores of the k best tokens, minus infinity elsewhere."""
        kept = min(max(self.k, self.min_tokens_to_keep), scores.shape[-1])
        kth = scores.topk(kept).values[:, -1:]
        return scores.masked_fill(scores < kth, -torch.inf)
