"""Top-k truncation."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import is_count
from decodekit.processors._shared.parameters import PerPrompt, map_per_prompt, for_rows, largest, per_prompt
from decodekit.processors.base import StatelessProcessor


@final
@dataclass(frozen=True)
class TopK(StatelessProcessor):
    """Bans every token but the k likeliest.

    Tokens tied with the k-th all survive, so more than k can. Does not change the argmax.

    Args:
        k: Tokens to keep, at least 1; more than the vocabulary keeps all; one number, or one for each
            prompt. Usual values: 10-100.
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

    k: PerPrompt
    min_tokens_to_keep: int = 1

    argmax_invariant = True
    batch_independent = True

    def __post_init__(self) -> None:
        kept = per_prompt("TopK", "k", self.k, lambda k: is_count(k, 1), "an integer of at least 1")
        if not is_count(self.min_tokens_to_keep, 1):
            raise ValueError(
                f"TopK: min_tokens_to_keep must be an integer of at least 1, got {self.min_tokens_to_keep!r}."
            )
        object.__setattr__(self, "k", kept)  # a frozen field

    def process(
        self, history: History, scores: Float32[Tensor, "rows vocab"]
    ) -> Float32[Tensor, "rows vocab"]:
        """The scores of the k best tokens, minus infinity elsewhere."""
        least, vocab = self.min_tokens_to_keep, scores.shape[-1]
        kept = map_per_prompt(lambda k: min(max(k, least), vocab), self.k)
        likeliest = scores.topk(int(largest(kept))).values
        last = for_rows(kept, history, history.tokens)
        kth = likeliest.gather(1, last - 1) if isinstance(last, Tensor) else likeliest[:, -1:]
        return scores.masked_fill(scores < kth, -torch.inf)
