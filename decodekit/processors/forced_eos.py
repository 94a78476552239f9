"""A forced last token."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import at_least, read_ids, set_fields
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import Column, NewTokenProcessor, Scores, force


@final
@dataclass(frozen=True)
class ForcedEOS(NewTokenProcessor):
    """Allows only end ids at the last new token.

    So every output ends with an end id. They get the score 0 and so add nothing to a beam, even if they
    were banned before.

    Args:
        max_new_tokens: Number of the last new token, counted from 1: the `max_new_tokens` of the run, or
            fewer; one number, or one per prompt.
        end_ids: The ids to allow, one or several; `model.vocabulary.end_ids` are the model's own.

    Raises:
        ValueError: If `max_new_tokens` is not an integer of at least 1, there is no end id, or one is
            not an integer of at least 0; when applied, if one is outside the vocabulary.

    Example:
        >>> model = dk.testing.MarkovModel([[0.5, 0.5], [0.0, 1.0]], end_ids=(0,))
        >>> dk.decode(model, [1], dk.Greedy(), ForcedEOS(3, end_ids=0), max_new_tokens=3).hypotheses()
        [[[1, 1, 0]]]

    Hugging Face:
        `ForcedEOSTokenLogitsProcessor(max_length, end_ids)`, bit for bit, where `max_length` is the prompt's
        length in columns plus `max_new_tokens`; decodekit reads the prompt's length from the run.
    """

    max_new_tokens: PerPrompt
    end_ids: int | Iterable[int]

    def __post_init__(self) -> None:
        set_per_prompt(self, max_new_tokens=at_least(1))
        set_fields(self, end_ids=read_ids("ForcedEOS", self.end_ids))
        if not self.end_ids:
            raise ValueError("ForcedEOS: end_ids must hold at least one id, got none.")

    @override
    def process(self, history: History, scores: Scores, first_new: Column) -> Scores:
        max_new_tokens = for_rows(self.max_new_tokens, history, history.tokens)
        is_last = history.position - first_new + 1 == max_new_tokens
        return force("ForcedEOS", scores, read_ids("ForcedEOS", self.end_ids), is_last)
