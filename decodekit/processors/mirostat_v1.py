"""Mirostat, version 1."""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import POSITIVE, at_least
from decodekit.processors._shared.mirostat import Mirostat, MirostatMemory
from decodekit.processors._shared.parameters import PerPrompt, for_rows, largest, set_per_prompt
from decodekit.processors.base import Scores


@final
@dataclass(frozen=True)
class MirostatV1(Mirostat):
    r"""Keeps the k likeliest tokens, with k such that emitted tokens have `tau` bits of surprise.

    Models the distribution as Zipf's, $p_i \propto i^{-s}$, and estimates s from its `m` likeliest tokens:
    with $t_i = \ln\frac{i+1}{i}$ and $b_i = \ln\frac{p_i}{p_{i+1}}$,

    $$\hat s = \frac{\sum_{i=1}^{m-1} t_i b_i}{\sum_{i=1}^{m-1} t_i^2}, \qquad
    k = \left(\frac{\hat\epsilon\, 2^\mu}{1 - N^{-\hat\epsilon}}\right)^{1/\hat s}, \qquad
    \hat\epsilon = \hat s - 1,$$

    where N is the size of the vocabulary, and keeps the best round(k) + 1 (and those tied with the last).
    After each token x, $\mu \leftarrow \mu - \eta\,(-\log_2 P(x) - \tau)$, from $\mu = 2\tau$. P is the
    distribution before mirostat bans anything. Every row has its own $\mu$. Does not change the argmax.

    Not capturable: the memory has one number per token, and the vocabulary size is known only at the first
    step.

    Args:
        tau: The target surprise in bits, above 0; one number, or one per prompt. Usual values: 3-5.
        eta: Learning rate, above 0; one number, or one per prompt. Usual values: 0.1-1.
        m: Tokens to estimate s from, at least 2; one number, or one per prompt. Banned ones do not count.

    Raises:
        ValueError: If `tau` or `eta` is not a finite number above 0, or `m` not an integer of at least 2.

    Example:
        >>> sample, mirostat = dk.Sample(seeds=[0]), dk.MirostatV1(3.0)
        >>> dk.decode(dk.load(), "Once upon a time", sample, mirostat, max_new_tokens=5).lengths
        tensor([[5]])

    Source:
        Basu et al., 2021, https://arxiv.org/abs/2007.14966, algorithm 1. Rounding and the extra token are
        from the authors' program, https://github.com/basusourya/mirostat, which estimates s from 101 tokens.

    Hugging Face:
        None. llama.cpp rounds k down, and measures the surprise of a token after the truncation.
    """

    m: PerPrompt = 100

    def __post_init__(self) -> None:
        set_per_prompt(self, tau=POSITIVE, eta=POSITIVE, m=at_least(2))

    @override
    def banned(self, history: History, scores: Scores, memory: MirostatMemory) -> Bool[Tensor, "rows vocab"]:
        descending = scores.sort(dim=-1, descending=True).values
        return scores < descending.gather(1, self._tokens_to_keep(history, descending, memory.mu) - 1)

    def _tokens_to_keep(
        self, history: History, descending: Float[Tensor, "rows vocab"], mu: Float32[Tensor, "rows 1"]
    ) -> Int64[Tensor, "rows 1"]:
        """Return the number of tokens that every row keeps."""
        # In float64: k is exponential in s, and is rounded.
        top = descending[:, : int(largest(self.m))].double()
        ranks = torch.arange(1, top.shape[1], device=top.device)
        steps = ((ranks + 1) / ranks.double()).log()
        drops = top[:, :-1] - top[:, 1:]
        counted = drops.isfinite() & (ranks < for_rows(self.m, history, top))
        numerator = torch.where(counted, steps * drops, 0.0).sum(-1, keepdim=True)
        exponent = numerator / torch.where(counted, steps.square(), 0.0).sum(-1, keepdim=True)
        vocab = descending.shape[-1]
        log_vocab = math.log(max(vocab, 2))
        # epsilon / (1 - N**-epsilon); its limit at s = 1 is 1 / ln N
        power = (exponent - 1) * log_vocab
        ratio = torch.where(power == 0, 1.0, power / -torch.expm1(-power)) / log_vocab
        k = ((ratio.log() + mu.double() * math.log(2)) / exponent).exp()
        # NaN if fewer than two tokens are allowed: then all are kept.
        return (k.round() + 1).nan_to_num(vocab).clamp(max=vocab).long()
