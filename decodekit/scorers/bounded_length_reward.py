"""Reward per token up to the expected length."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.scorers._shared.expected_length import ExpectedLengthScorer
from decodekit.scorers.base import Lengths, PathScorer, Values
from decodekit.scorers.log_prob import LogProb


@final
@dataclass(frozen=True)
class BoundedLengthReward(ExpectedLengthScorer):
    r"""Adds a reward for every token up to the expected length, and none beyond.

    $s(y) + r \min(|y|, L)$. $L$ is the expected length: `length`, or `ratio` times the number of tokens of
    the encoder's source, or of the prompt if there is no encoder.

    Args:
        reward: $r$, nats per token, at least 0. Usual values: 0.1-1.
        ratio: Expected new tokens per token of the source or prompt, above 0.
        length: Expected new tokens, above 0: one number, or one per prompt. Excludes `ratio`.
        base: The scorer to adjust.

    Raises:
        ValueError: If a number is out of range, or both or neither of `ratio` and `length` are given.
        DecodekitError: In a run, if the number of lengths differs from the batch size.

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

    def __post_init__(self) -> None:
        self.check("reward")

    @override
    def adjustment(self, lengths: Lengths, memory: Values) -> Values:
        return self.reward * torch.minimum(lengths.to(memory.dtype), memory)
