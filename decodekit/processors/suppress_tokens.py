"""Suppression of tokens at every step."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import read_ids, set_fields
from decodekit.processors.base import Scores, StatelessProcessor, ban


@final
@dataclass(frozen=True)
class SuppressTokens(StatelessProcessor):
    """Bans a fixed set of tokens at every step.

    Args:
        tokens: Their ids, one or several, below the vocabulary size.

    Raises:
        ValueError: If an id is not an integer of at least 0; when applied, if one is outside the vocabulary.

    Example:
        >>> SuppressTokens([0, 2])(torch.tensor([[0]]), torch.zeros(1, 3))
        tensor([[-inf, 0., -inf]])

    Hugging Face:
        `SuppressTokensLogitsProcessor(tokens)`, bit for bit. Hugging Face ignores ids outside the vocabulary.
    """

    tokens: int | Iterable[int]

    batch_independent = True

    def __post_init__(self) -> None:
        set_fields(self, tokens=read_ids("SuppressTokens", self.tokens))

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        return ban("SuppressTokens", scores, read_ids("SuppressTokens", self.tokens))
