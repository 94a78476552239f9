"""Min-p truncation."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.history import History
from decodekit.processors.base import StatelessProcessor, is_count, is_number


@final
@dataclass(frozen=True)
class MinP(StatelessProcessor):
    r"""Bans every token less than `p` times as likely as the likeliest one.

    Keeps $\{v : P(v) \ge p \cdot \max_u P(u)\}$, so the set shrinks where the model is sure.
    At least one token always survives. Does not change the argmax.

    Args:
        p: Fraction of the largest probability, in (0, 1]. Usual values: 0.01-0.2.
        min_tokens_to_keep: Keeps this many of the likeliest whatever `p` says.

    Raises:
        ValueError: If `p` is outside (0, 1], or `min_tokens_to_keep` is not an integer of at least 1.

    Example:
        >>> scores = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> MinP(0.5)(torch.tensor([[0]]), scores).isfinite()
        tensor([[ True,  True, False]])

    Source:
        Nguyen et al., 2024, https://arxiv.org/abs/2407.01082, algorithm 1.

    Hugging Face:
        `MinPLogitsWarper(p, min_tokens_to_keep=...)`, bit for bit.
    """

    p: float
    min_tokens_to_keep: int = 1

    argmax_invariant = True

    def __post_init__(self) -> None:
        if not (is_number(self.p) and 0 < self.p <= 1):
            raise ValueError(f"MinP: p must be in (0, 1], got {self.p!r}.")
        if not is_count(self.min_tokens_to_keep, 1):
            raise ValueError(
                f"MinP: min_tokens_to_keep must be an integer of at least 1, got {self.min_tokens_to_keep!r}."
            )

    def process(
        self,
        history: History,  # noqa: ARG002 - the contract's signature
        scores: Float32[Tensor, "rows vocab"],
    ) -> Float32[Tensor, "rows vocab"]:
        """The scores of the tokens that are likely enough, minus infinity elsewhere."""
        # Compared as probabilities, not as scores against log(p): ties round as in Hugging Face.
        probs = scores.softmax(-1)
        banned = probs < self.p * probs.amax(-1, keepdim=True)
        if self.min_tokens_to_keep > 1:
            kept = min(self.min_tokens_to_keep, scores.shape[-1])
            banned = banned.scatter(1, probs.topk(kept).indices, torch.zeros_like(banned))
        return scores.masked_fill(banned, -torch.inf)
