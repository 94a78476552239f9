"""Scores that are numbers."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.processors.base import StatelessProcessor

_MOST = torch.finfo(torch.float32).max


@final
@dataclass(frozen=True, kw_only=True)
class SanitizeScores(StatelessProcessor):
    """Turns scores that are not a number into 0, and infinite ones into the largest number there is.

    For models whose arithmetic overflows, which `decode` otherwise refuses. It hides an error and does
    not mend it: under beam search 0 is a log-probability, the largest possible.

    Args:
        unban: Turns minus infinity into the least number, too, so that a decoder with nothing else left
            says what was banned. False keeps the bans, which harm nothing.

    Raises:
        ValueError: If `unban` is neither True nor False.

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
        if not isinstance(self.unban, bool):
            raise ValueError(f"SanitizeScores: unban must be True or False, got {self.unban!r}.")  # noqa: TRY004

    def process(
        self,
        history: History,  # noqa: ARG002 - the contract's signature
        scores: Float32[Tensor, "rows vocab"],
    ) -> Float32[Tensor, "rows vocab"]:
        """The scores as finite numbers, but for bans."""
        return scores.nan_to_num(0.0, posinf=_MOST, neginf=-_MOST if self.unban else -torch.inf)
