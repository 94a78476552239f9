"""A minimum number of new tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import at_least, read_ids, set_fields
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import Column, NewTokenProcessor, Scores, ban


@final
@dataclass(frozen=True)
class MinNewTokens(NewTokenProcessor):
    """Bans the end ids until there are enough new tokens.

    Args:
        min_new_tokens: New tokens before an end id is allowed, at least 0; one number, or one per prompt.
        end_ids: The ids to ban, one or several; `model.vocabulary.end_ids` are the model's own.

    Raises:
        ValueError: If `min_new_tokens` is not an integer of at least 0, or an id is not an integer of at
            least 0; when applied, if an id is outside the vocabulary.

    Example:
        >>> MinNewTokens(5, end_ids=0)
        MinNewTokens(min_new_tokens=5, end_ids=(0,))

    Hugging Face:
        `MinNewTokensLengthLogitsProcessor(prompt_length, min_new_tokens, end_ids)`; decodekit reads the
        prompt's length from the run.
    """

    min_new_tokens: PerPrompt
    end_ids: int | Iterable[int]

    def __post_init__(self) -> None:
        set_per_prompt(self, min_new_tokens=at_least(0))
        set_fields(self, end_ids=read_ids("MinNewTokens", self.end_ids))

    @override
    def process(self, history: History, scores: Scores, first_new: Column) -> Scores:
        required = for_rows(self.min_new_tokens, history, history.tokens)
        too_short = history.position - first_new < required
        return ban("MinNewTokens", scores, read_ids("MinNewTokens", self.end_ids), too_short)
