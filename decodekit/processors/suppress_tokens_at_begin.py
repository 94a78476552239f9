"""Suppression of tokens at the beginning."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import at_least, check_fields, read_ids, set_fields
from decodekit.processors.base import Column, NewTokenProcessor, Scores, ban


@final
@dataclass(frozen=True)
class SuppressTokensAtBegin(NewTokenProcessor):
    """Bans a fixed set of tokens at the first new token only.

    Args:
        tokens: Their ids, one or several, below the vocabulary size.
        begin: Number of new tokens before; 1 if the first one is forced, as by `ForcedBOS`.

    Raises:
        ValueError: If an id or `begin` is not an integer of at least 0; when applied, if an id is outside the
            vocabulary.

    Example:
        >>> model = dk.testing.MarkovModel([[0.6, 0.4], [0.6, 0.4]])
        >>> banned = SuppressTokensAtBegin(0)
        >>> dk.decode(model, [1], dk.Greedy(), banned, max_new_tokens=3).hypotheses()
        [[[1, 0, 0]]]

    Source:
        Radford et al., 2022, https://arxiv.org/abs/2212.04356: Whisper begins with neither a blank nor its
        end.

    Hugging Face:
        `SuppressTokensAtBeginLogitsProcessor(tokens, begin_index)`, bit for bit, where `begin_index` is the
        prompt's length in columns plus `begin`; decodekit reads the prompt's end from the run. Hugging Face
        ignores ids outside the vocabulary.
    """

    tokens: int | Iterable[int]
    begin: int = 0

    def __post_init__(self) -> None:
        check_fields(self, begin=at_least(0))
        set_fields(self, tokens=read_ids("SuppressTokensAtBegin", self.tokens))

    @override
    def process(self, history: History, scores: Scores, first_new: Column) -> Scores:
        ids = read_ids("SuppressTokensAtBegin", self.tokens)
        begins = history.position - first_new == self.begin
        return ban("SuppressTokensAtBegin", scores, ids, begins)
