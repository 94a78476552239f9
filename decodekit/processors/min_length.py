"""A least length of the text."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from jaxtyping import Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import is_count, read_ids
from decodekit.processors._shared.parameters import PerPrompt, for_rows, per_prompt
from decodekit.processors.base import StatelessProcessor, ban


@final
@dataclass(frozen=True)
class MinLength(StatelessProcessor):
    """Bans the end ids while the whole text, prompt included, is too short.

    Padding does not count: every row counts its own tokens. For new tokens alone use `MinNewTokens`.

    Args:
        min_length: Tokens of prompt and continuation together before an end id may come, at least 0;
            one number, or one for each prompt.
        end_ids: The ids to ban, one or several; `model.vocabulary.end_ids` are the model's own.

    Raises:
        ValueError: If `min_length` is not an integer of at least 0, or an id is not one; when applied,
            if an id is outside the vocabulary.

    Example:
        >>> MinLength(3, end_ids=0)(torch.tensor([[5, 7]]), torch.zeros(1, 3))
        tensor([[-inf, 0., 0.]])

    Hugging Face:
        `MinLengthLogitsProcessor(min_length, end_ids)`, bit for bit without padding. Theirs counts left
        padding, so that in a batch a short prompt may end sooner than it may alone; ours does not.
    """

    min_length: PerPrompt
    end_ids: int | Iterable[int]

    batch_independent = True

    def __post_init__(self) -> None:
        kept = per_prompt(
            "MinLength",
            "min_length",
            self.min_length,
            lambda value: is_count(value, 0),
            "an integer of at least 0",
        )
        object.__setattr__(self, "min_length", kept)  # frozen fields
        object.__setattr__(self, "end_ids", read_ids("MinLength", self.end_ids))

    def process(
        self, history: History, scores: Float32[Tensor, "rows vocab"]
    ) -> Float32[Tensor, "rows vocab"]:
        """The scores, without end ids where the text is too short."""
        lengths = history.valid.sum(-1, keepdim=True)
        too_short = lengths < for_rows(self.min_length, history, lengths)
        return ban("MinLength", scores, read_ids("MinLength", self.end_ids), too_short)
