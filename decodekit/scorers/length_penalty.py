"""Length normalization."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import final

import torch
from typing_extensions import override

from decodekit.scorers.base import AnyLengths, AnyValues, Scorer


@final
@dataclass(frozen=True)
class LengthPenalty(Scorer):
    r"""Ranks hypotheses by log-probability over a power of their length.

    $\log P(y) / |y|^\alpha$: 0 ranks by the sum, 1 by the mean per token. Above 0 favours longer
    hypotheses, below 0 shorter ones.

    Args:
        alpha: The power, any finite number. Usual values: 0-2.

    Raises:
        ValueError: If `alpha` is not finite.

    Example:
        >>> LengthPenalty(1.0)(torch.tensor([-3.0]), torch.tensor([2]))
        tensor([-1.5000])

    Source:
        Wu et al., 2016, https://arxiv.org/abs/1609.08144, section 7, with |y| for their (5+|y|)/6.

    Hugging Face:
        `length_penalty=alpha`, bit for bit. Lengths count new tokens, the end id included.
    """

    alpha: float = 1.0

    batch_independent = True

    def __post_init__(self) -> None:
        if not (isinstance(self.alpha, Real) and math.isfinite(self.alpha)):
            raise ValueError(f"LengthPenalty: alpha must be a finite number, got {self.alpha!r}.")

    @override
    def __call__(self, log_probs: AnyValues, lengths: AnyLengths) -> AnyValues:
        # In double precision, as Hugging Face's Python numbers are, then rounded once.
        return log_probs / lengths.to(torch.float64).pow(self.alpha).to(log_probs.dtype)

    @override
    def bound(self, log_probs: AnyValues, lengths: AnyLengths, max_length: int) -> AnyValues:
        # A negative sum grows with its divisor: use the maximum length if alpha > 0, else the present one.
        return self(log_probs, torch.full_like(lengths, max_length) if self.alpha > 0 else lengths)
