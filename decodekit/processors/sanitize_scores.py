"""Replacement of NaN and infinite scores."""

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import FLAG, MOST, check_fields
from decodekit.processors.base import Scores, StatelessProcessor


@final
@dataclass(frozen=True, kw_only=True)
class SanitizeScores(StatelessProcessor):
    """Replaces NaN by 0 and plus infinity by the largest float32 number.

    For models whose arithmetic overflows, which `decode` otherwise refuses. It hides the error without
    repairing it: under beam search 0 is the largest log-probability.

    Args:
        unban: True to replace minus infinity by the least float32 number, so that a decoder can emit banned
            tokens if all are banned. False keeps the bans.

    Raises:
        ValueError: If `unban` is not True or False.

    Example:
        >>> scores = torch.tensor([[torch.nan, 1.0, torch.inf, -torch.inf]])
        >>> SanitizeScores()(torch.tensor([[0]]), scores).tolist()
        [[0.0, 1.0, 3.4028234663852886e+38, -inf]]

    Hugging Face:
        `InfNanRemoveLogitsProcessor()` is `SanitizeScores(unban=True)`, bit for bit.
    """

    unban: bool = False

    batch_independent = True

    def __post_init__(self) -> None:
        check_fields(self, unban=FLAG)

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        return scores.nan_to_num(0.0, posinf=MOST, neginf=-MOST if self.unban else -torch.inf)
