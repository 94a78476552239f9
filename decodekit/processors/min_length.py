"""A minimum length of the sequence."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import at_least, read_ids, set_fields
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import Scores, StatelessProcessor, ban


@final
@dataclass(frozen=True)
class MinLength(StatelessProcessor):
    """Bans the end ids while the whole sequence, prompt included, is too short.

    Padding does not count. To count new tokens alone use `MinNewTokens`.

    Args:
        min_length: Tokens of prompt and continuation together before an end id is allowed, at least 0;
            one number, or one per prompt.
        end_ids: The ids to ban, one or several; `model.vocabulary.end_ids` are the model's own.

    Raises:
        ValueError: If `min_length` is not an integer of at least 0, or an id is not an integer of at least 0;
            when applied, if an id is outside the vocabulary.

    Example:
        >>> MinLength(3, end_ids=0)(torch.tensor([[5, 7]]), torch.zeros(1, 3))
        tensor([[-inf, 0., 0.]])

    Hugging Face:
        `MinLengthLogitsProcessor(min_length, end_ids)`, bit for bit without padding. Hugging Face counts left
        padding, so in a batch a short prompt may end sooner than alone; decodekit does not.
    """

    min_length: PerPrompt
    end_ids: int | Iterable[int]

    batch_independent = True

    def __post_init__(self) -> None:
        set_per_prompt(self, min_length=at_least(0))
        set_fields(self, end_ids=read_ids("MinLength", self.end_ids))

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        lengths = history.valid.sum(-1, keepdim=True)
        too_short = lengths < for_rows(self.min_length, history, lengths)
        return ban("MinLength", scores, read_ids("MinLength", self.end_ids), too_short)
