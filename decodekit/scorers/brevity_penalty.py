"""A penalty for texts that are too short, as BLEU has."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.scorers._shared.expected_length import check_expected, expected_length
from decodekit.scorers.adjusted import AdjustedScorer, check_weight
from decodekit.scorers.base import ExtendedHypotheses, PathScorer
from decodekit.scorers.length_penalty import LengthPenalty


@final
@dataclass(frozen=True)
class BrevityPenalty(AdjustedScorer):
    r"""Takes off what BLEU's brevity penalty would: hypotheses below the expected length pay for it.

    $s(y) + \lambda \min\left(1 - \frac{L}{|y|}, 0\right)$; with $\lambda = 1$ the penalty's logarithm.
    $L$ is the expected length: `ratio` times the tokens that an encoder has read, else those of the prompt;
    or what `length` says.

    Args:
        weight: $\lambda$, at least 0.
        ratio: New tokens expected for each token of the source or prompt, above 0.
        length: New tokens expected, above 0: one number, or one a prompt. Instead of `ratio`.
        base: What is adjusted.

    Raises:
        ValueError: If a number is out of range, or not exactly one of `ratio` and `length` is given.
        DecodekitError: In a run, if there are not as many lengths as prompts.

    Example:
        >>> search = dk.BeamSearch(5, scorer=BrevityPenalty(ratio=1.1))

    Source:
        Yang, Huang & Ma, 2018, https://arxiv.org/abs/1808.09582, section 4.

    Hugging Face:
        None.
    """

    weight: float = 1.0
    _: KW_ONLY
    ratio: float | None = None
    length: float | Sequence[float] | None = None
    base: PathScorer = LengthPenalty(1.0)

    batch_independent = True

    def __post_init__(self) -> None:
        check_weight(self, "weight", self.weight)
        object.__setattr__(self, "length", check_expected(self, self.ratio, self.length))  # a frozen field

    def init_adjustment(self, history: History, limits: Limits) -> Float[Tensor, " rows"]:
        """The expected length."""
        return expected_length(self, self.ratio, self.length, history, limits)

    def update_adjustment(
        self, extended: ExtendedHypotheses, memory: Float[Tensor, " hyps"]
    ) -> Float[Tensor, " hyps"]:  # noqa: ARG002
        """The same."""
        return memory

    def adjustment(
        self, lengths: Int64[Tensor, " hyps"], memory: Float[Tensor, " hyps"]
    ) -> Float[Tensor, " hyps"]:
        """The penalty, at most 0."""
        return self.weight * (1 - memory / lengths).clamp(max=0)

    def adjustment_bound(
        self, lengths: Int64[Tensor, " hyps"], max_length: int, memory: Float[Tensor, " hyps"]
    ) -> Float[Tensor, " hyps"]:
        """That of the longest text."""
        return self.adjustment(torch.full_like(lengths, max_length), memory)
