"""Length normalisation."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from decodekit.scorers.base import Scorer


@final
@dataclass(frozen=True)
class LengthPenalty(Scorer):
    r"""Ranks hypotheses by log-probability over a power of their length.

    $\log P(y) / |y|^\alpha$: 0 ranks by the sum, 1 by the mean a token; above 0 favours longer
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

    def __call__(
        self, log_probs: Float[Tensor, "*shape"], lengths: Int64[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """The sums over the lengths' power."""
        # In double precision, as Hugging Face's Python numbers are, then rounded once.
        return log_probs / lengths.to(torch.float64).pow(self.alpha).to(log_probs.dtype)

    def bound(
        self, log_probs: Float[Tensor, "*shape"], lengths: Int64[Tensor, "*shape"], max_length: int
    ) -> Float[Tensor, "*shape"]:
        """The sums so far over the power of the length that is kindest to them."""
        # A negative sum shrinks as it is divided by more: the longest text for alpha > 0, the
        # shortest, which is not below the present length, otherwise.
        return self(log_probs, torch.full_like(lengths, max_length) if self.alpha > 0 else lengths)
