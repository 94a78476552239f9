"""Length penalty of Google's translation system (GNMT)."""

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.validation import FINITE, check_fields
from decodekit.scorers.base import AnyLengths, AnyValues, Scorer


@final
@dataclass(frozen=True)
class GNMTLengthPenalty(Scorer):
    r"""Ranks hypotheses by log-probability over a gentle power of their length.

    $\log P(y) / lp(y)$ with $lp(y) = \left(\frac{5 + |y|}{6}\right)^\alpha$: the penalty of one
    token is 1, and short hypotheses differ less than under `LengthPenalty`.

    Args:
        alpha: The power, any finite number. Usual values: 0.6-1.

    Raises:
        ValueError: If `alpha` is not finite.

    Example:
        >>> GNMTLengthPenalty(1.0)(torch.tensor([-3.0]), torch.tensor([7]))
        tensor([-1.5000])

    Source:
        Wu et al., 2016, https://arxiv.org/abs/1609.08144, equation 14.

    Hugging Face:
        None; its `length_penalty` is `LengthPenalty`.
    """

    alpha: float = 0.6

    batch_independent = True

    def __post_init__(self) -> None:
        check_fields(self, alpha=FINITE)

    @override
    def __call__(self, log_probs: AnyValues, lengths: AnyLengths) -> AnyValues:
        return log_probs / ((5 + lengths.to(torch.float64)) / 6).pow(self.alpha).to(log_probs.dtype)

    @override
    def bound(self, log_probs: AnyValues, lengths: AnyLengths, max_length: int) -> AnyValues:
        # A negative sum grows with its divisor: use the maximum length if alpha > 0, else the present one.
        return self(log_probs, torch.full_like(lengths, max_length) if self.alpha > 0 else lengths)
