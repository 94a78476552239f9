"""Top-k truncation."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import at_least, check_fields
from decodekit.processors._shared.parameters import (
    PerPrompt,
    for_rows,
    largest,
    map_per_prompt,
    set_per_prompt,
)
from decodekit.processors.base import Scores, StatelessProcessor


@final
@dataclass(frozen=True)
class TopK(StatelessProcessor):
    """Bans every token but the k likeliest.

    Tokens tied with the k-th all survive, so more than k can. Does not change the argmax.

    Args:
        k: Tokens to keep, at least 1; more than the vocabulary keeps all; one number, or one per prompt.
            Usual values: 10-100.
        min_tokens_to_keep: Tokens to keep even if `k` is smaller, at least 1.

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
        set_per_prompt(self, k=at_least(1))
        check_fields(self, min_tokens_to_keep=at_least(1))

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        least, vocab = self.min_tokens_to_keep, scores.shape[-1]
        kept = map_per_prompt(lambda k: min(max(k, least), vocab), self.k)
        likeliest = scores.topk(int(largest(kept))).values
        last = for_rows(kept, history, history.tokens)
        kth = likeliest.gather(1, last - 1) if isinstance(last, Tensor) else likeliest[:, -1:]
        return scores.masked_fill(scores < kth, -torch.inf)
