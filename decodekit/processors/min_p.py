"""Min-p truncation."""

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import POSITIVE_FRACTION, at_least, check_fields
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import Scores, StatelessProcessor


@final
@dataclass(frozen=True)
class MinP(StatelessProcessor):
    r"""Bans every token less than `p` times as likely as the likeliest one.

    Keeps $\{v : P(v) \ge p \cdot \max_u P(u)\}$, so the set shrinks where the model is sure.
    At least one token always survives. Does not change the argmax.

    Args:
        p: Fraction of the largest probability, in (0, 1]; one number, or one per prompt. Usual values:
            0.01-0.2.
        min_tokens_to_keep: Always keeps this many of the likeliest tokens.

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

    p: PerPrompt
    min_tokens_to_keep: int = 1

    argmax_invariant = True
    batch_independent = True

    def __post_init__(self) -> None:
        set_per_prompt(self, p=POSITIVE_FRACTION)
        check_fields(self, min_tokens_to_keep=at_least(1))

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        # Compared as probabilities, not as scores against log(p): ties round as in Hugging Face.
        probs = scores.softmax(-1)
        banned = probs < for_rows(self.p, history, scores) * probs.amax(-1, keepdim=True)
        if self.min_tokens_to_keep > 1:
            likeliest = probs.topk(min(self.min_tokens_to_keep, scores.shape[-1])).indices
            banned = banned.scatter(1, likeliest, torch.zeros_like(banned))
        return scores.masked_fill(banned, -torch.inf)
