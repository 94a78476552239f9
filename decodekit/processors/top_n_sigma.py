"""Top-n-sigma truncation."""

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import POSITIVE
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import Scores, StatelessProcessor


@final
@dataclass(frozen=True)
class TopNSigma(StatelessProcessor):
    r"""Bans every token whose score is more than n standard deviations below the best one.

    Keeps $\{v : s(v) \ge \max_u s(u) - n\sigma\}$. $\sigma$ is the population standard deviation (divided by
    the number of tokens, not by one less) of the scores that are not banned. A temperature before it does not
    change the set. The likeliest token always survives. Does not change the argmax.

    Args:
        n: Standard deviations, above 0; one number, or one per prompt. Usual values: 0.7-2.

    Raises:
        ValueError: If `n` is not a finite number above 0.

    Example:
        >>> TopNSigma(1.0)(torch.tensor([[0]]), torch.tensor([[4.0, 3.0, 1.0, 0.0]]))
        tensor([[4., 3., -inf, -inf]])

    Source:
        Tang et al., 2024, https://arxiv.org/abs/2411.07641.

    Hugging Face:
        None. The set is llama.cpp's, where an n of 0 or less disables it.
    """

    n: PerPrompt

    argmax_invariant = True
    batch_independent = True

    def __post_init__(self) -> None:
        set_per_prompt(self, n=POSITIVE)

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        allowed = scores > -torch.inf
        count = allowed.sum(-1, keepdim=True)
        # From the top, so that large scores lose no digits of their differences.
        below = scores - scores.amax(-1, keepdim=True)
        mean = torch.where(allowed, below, 0.0).sum(-1, keepdim=True) / count
        variance = torch.where(allowed, below - mean, 0.0).square().sum(-1, keepdim=True) / count
        return scores.masked_fill(below < -for_rows(self.n, history, scores) * variance.sqrt(), -torch.inf)
