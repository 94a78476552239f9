"""Top-h truncation."""

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import POSITIVE_FRACTION
from decodekit.processors._shared.log_probs import probs_and_entropy
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import Scores, StatelessProcessor

CANDIDATES = 100  # as in Hugging Face, only the 100 likeliest tokens are candidates


@final
@dataclass(frozen=True)
class TopH(StatelessProcessor):
    r"""Bans the tail: keeps the likeliest tokens that hold at most a fraction h of the entropy.

    With the tokens in order of probability, $P$ over the 100 likeliest and $H$ its entropy, keeps the first
    token, and the token of rank k if

    $$-\sum_{i \le k} P(v_i) \log P(v_i) \le h \cdot H.$$

    So the set grows where the model is unsure. Does not change the argmax.

    Args:
        h: Fraction of the entropy, in (0, 1]; one number, or one per prompt. Usual value: 0.4.

    Raises:
        ValueError: If `h` is outside (0, 1].

    Example:
        >>> scores = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> TopH(0.7)(torch.tensor([[0]]), scores).isfinite()
        tensor([[ True,  True, False]])

    Source:
        Baghaei Potraghloo et al., 2025, https://arxiv.org/abs/2509.02510. The paper bounds the entropy of the
        kept tokens alone; decodekit, like Hugging Face, bounds their part of the sum.

    Hugging Face:
        `TopHLogitsWarper(h)`, bit for bit, ties included. For an infinite score Hugging Face raises;
        decodekit keeps only that token.
    """

    h: PerPrompt

    argmax_invariant = True
    batch_independent = True

    def __post_init__(self) -> None:
        set_per_prompt(self, h=POSITIVE_FRACTION)

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        likeliest, ids = scores.topk(min(CANDIDATES, scores.shape[-1]))
        probs, entropy = probs_and_entropy(likeliest)
        # A probability of 0 gives NaN, which no comparison keeps: such tokens come last.
        held = (-probs * probs.log()).cumsum(-1)
        first = torch.arange(ids.shape[-1], device=scores.device) == 0
        kept = (held <= entropy * for_rows(self.h, history, scores)) | first
        banned = torch.ones_like(scores, dtype=torch.bool).scatter(1, ids, ~kept)
        return scores.masked_fill(banned, -torch.inf)
