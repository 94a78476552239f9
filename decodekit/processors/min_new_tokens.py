"""A least number of new tokens."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.history import History
from decodekit.processors.base import LogitsProcessor, ban, check_ids


@final
class MinNewTokens(LogitsProcessor):
    """Bans the end ids until enough new tokens are there.

    Args:
        min_new_tokens: New tokens before an end id may come, at least 0.
        end_ids: The ids to ban, one or several; `model.vocabulary.end_ids` are the model's own.

    Raises:
        ValueError: If `min_new_tokens` is not an integer of at least 0, or an id is not one.

    Example:
        >>> MinNewTokens(5, end_ids=0)
        MinNewTokens(5, end_ids=(0,))

    Hugging Face:
        `MinNewTokensLengthLogitsProcessor(prompt_length, min_new_tokens, end_ids)`; ours remembers
        where the prompt ends by itself.
    """

    def __init__(self, min_new_tokens: int, end_ids: int | Sequence[int]) -> None:
        if type(min_new_tokens) is not int or min_new_tokens < 0:
            raise ValueError(
                f"MinNewTokens: min_new_tokens must be an integer of at least 0, got {min_new_tokens!r}."
            )
        self.min_new_tokens = min_new_tokens
        self.end_ids = (end_ids,) if isinstance(end_ids, int) else tuple(end_ids)
        check_ids("MinNewTokens", self.end_ids)

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
        return torch.where(too_short, ban("MinNewTokens", scores, self.end_ids), scores), memory

    def __repr__(self) -> str:
        return f"MinNewTokens({self.min_new_tokens}, end_ids={self.end_ids})"
