"""A reward for every token up to the expected length."""

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
from decodekit.scorers.log_prob import LogProb


@final
@dataclass(frozen=True)
class BoundedLengthReward(AdjustedScorer):
    r"""Adds a reward for every token up to the expected length, and none beyond.

    $s(y) + r \min(|y|, L)$.
    $L$ is the expected length: `ratio` times the tokens that an encoder has read, else those of the prompt;
    or what `length` says.

    Args:
        reward: $r$, nats a token, at least 0. Usual values: 0.1-1.
        ratio: New tokens expected for each token of the source or prompt, above 0.
        length: New tokens expected, above 0: one number, or one a prompt. Instead of `ratio`.
        base: What is adjusted.

    Raises:
        ValueError: If a number is out of range, or not exactly one of `ratio` and `length` is given.
        DecodekitError: In a run, if there are not as many lengths as prompts.

    Example:
        >>> search = dk.BeamSearch(5, scorer=BoundedLengthReward(0.5, ratio=1.1))

    Source:
        Yang, Huang & Ma, 2018, https://arxiv.org/abs/1808.09582, section 4.

    Hugging Face:
        None.
    """

    reward: float
    _: KW_ONLY
    ratio: float | None = None
    length: float | Sequence[float] | None = None
    base: PathScorer = LogProb()

    batch_independent = True

    def __post_init__(self) -> None:
        check_weight(self, "reward", self.reward)
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
        """The rewards."""
        return self.reward * torch.minimum(lengths.to(memory.dtype), memory)

    def adjustment_bound(
        self, lengths: Int64[Tensor, " hyps"], max_length: int, memory: Float[Tensor, " hyps"]
    ) -> Float[Tensor, " hyps"]:
        """That of the longest text."""
        return self.adjustment(torch.full_like(lengths, max_length), memory)
