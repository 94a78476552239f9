"""Banned sequences of tokens."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import final

from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import read_ids, set_fields, shown
from decodekit.processors._shared.biased_sequences import BiasedSequences
from decodekit.processors.base import Scores, StatelessProcessor


@final
@dataclass(frozen=True)
class BadWords(StatelessProcessor):
    """Bans every token that would complete one of some sequences.

    A word may have several spellings in tokens, with and without a space before it for instance: give
    all of them.

    Args:
        words: The sequences of ids, each of one id or more; without any, nothing changes.
        end_ids: Ids that stay allowed where they are a word by themselves, so that a sequence can end.

    Raises:
        ValueError: If a sequence is empty, or holds anything but integers of at least 0; when applied, if
            an id is outside the vocabulary.

    Example:
        >>> BadWords([[2], [5, 7, 0], [7, 7, 1]])(torch.tensor([[5, 7]]), torch.zeros(1, 8))
        tensor([[-inf, 0., -inf, 0., 0., 0., 0., 0.]])

    Hugging Face:
        `NoBadWordsLogitsProcessor(words, end_ids)`, bit for bit without padding, which Hugging Face treats as
        tokens. For a score of plus infinity it returns NaN; decodekit bans.
    """

    words: Iterable[int | Iterable[int]]
    end_ids: int | Iterable[int] = ()
    _sequences: BiasedSequences = field(init=False, repr=False, compare=False)

    batch_independent = True

    def __post_init__(self) -> None:
        if not isinstance(self.words, Iterable) or isinstance(self.words, str):
            raise ValueError(  # noqa: TRY004 - a bad argument, like the others
                f"BadWords: words must be sequences of ids, got {shown(self.words)}."
            )
        words = tuple(read_ids("BadWords", word) for word in self.words)
        end_ids = read_ids("BadWords", self.end_ids)
        banned = ((word, -math.inf) for word in words if not (len(word) == 1 and word[0] in end_ids))
        set_fields(self, words=words, end_ids=end_ids, _sequences=BiasedSequences.of("BadWords", banned))

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        return self._sequences.add("BadWords", history, scores)
