"""A least number of new tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import is_count, read_ids
from decodekit.processors._shared.parameters import PerPrompt, check_per_prompt, for_rows, per_prompt
from decodekit.processors.base import LogitsProcessor, ban


@final
@dataclass(frozen=True)
class MinNewTokens(LogitsProcessor):
    """Bans the end ids until enough new tokens are there.

    Args:
        min_new_tokens: New tokens before an end id may come, at least 0; one number, or one for each
            prompt.
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

    min_new_tokens: PerPrompt
    end_ids: int | Iterable[int]

    batch_independent = True

    def __post_init__(self) -> None:
        kept = per_prompt(
            "MinNewTokens",
            "min_new_tokens",
            self.min_new_tokens,
            lambda count: is_count(count, 0),
            "an integer of at least 0",
        )
        object.__setattr__(self, "min_new_tokens", kept)  # a frozen field
        object.__setattr__(self, "end_ids", read_ids("MinNewTokens", self.end_ids))  # a frozen field

    def init(self, history: History) -> Int64[Tensor, ""]:
        """The prompt's length in columns."""
        check_per_prompt(self, history)
        return history.position.clone()

    def apply(
        self,
        history: History,
        scores: Float32[Tensor, "rows vocab"],
        memory: Int64[Tensor, ""],
    ) -> tuple[Float32[Tensor, "rows vocab"], Int64[Tensor, ""]]:
        """The scores, without end ids while the text is too short."""
        least = for_rows(self.min_new_tokens, history, history.tokens)
        too_short = history.position - memory < least
        return ban("MinNewTokens", scores, read_ids("MinNewTokens", self.end_ids), too_short), memory
