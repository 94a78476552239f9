"""A least number of new tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.history import History
from decodekit.processors.base import LogitsProcessor, ban, is_count, read_ids


@final
@dataclass(frozen=True)
class MinNewTokens(LogitsProcessor):
    """Bans the end ids until enough new tokens are there.

    Args:
        min_new_tokens: New tokens before an end id may come, at least 0.
        end_ids: The ids to ban, one or several; `model.vocabulary.end_ids` are the model's own.

    Raises:
        ValueError: If `min_new_tokens` is not an integer of at least 0, or an id is not one.

    Example:
        >>> MinNewTokens(5, end_ids=0)
        MinNewTokens(min_new_tokens=5, end_ids=(0,))

    Hugging Face:
        `MinNewTokensLengthLogitsProcessor(prompt_length, min_new_tokens, end_ids)`; ours remembers
        where the prompt ends by itself.
    """

    min_new_tokens: int
    end_ids: int | Iterable[int]

    def __post_init__(self) -> None:
        if not is_count(self.min_new_tokens, 0):
            raise ValueError(
                f"MinNewTokens: min_new_tokens must be an integer of at least 0, got {self.min_new_tokens!r}."
            )
        object.__setattr__(self, "end_ids", read_ids("MinNewTokens", self.end_ids))  # a frozen field

    def init(self, history: History) -> Int64[Tensor, ""]:
        """The prompt's length in columns."""
        return history.position.clone()

    def apply(
        self,
        history: History,
        scores: Float32[Tensor, "rows vocab"],
        memory: Int64[Tensor, ""],
    ) -> tuple[Float32[Tensor, "rows vocab"], Int64[Tensor, ""]]:
        """The scores, without end ids while the text is too short."""
        too_short = history.position - memory < self.min_new_tokens
        return torch.where(
            too_short, ban("MinNewTokens", scores, read_ids("MinNewTokens", self.end_ids)), scores
        ), memory
