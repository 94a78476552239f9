"""New ids and new text of every row, read on the host for the criteria that ask for them."""

from typing import NamedTuple

from decodekit.core.history import History
from decodekit.core.stopping_criterion import StoppingContext
from decodekit.core.vocabulary import Vocabulary

_CONTEXT = 4  # tokens


class Tail(NamedTuple):
    """The end of a row's new text, with its newest token and without."""

    before: str
    now: str


class NewText(NamedTuple):
    """Reads what rows have said since the prompt.

    Attributes:
        start: The first new column.
        vocabulary: Turns ids into text.
    """

    start: int
    vocabulary: Vocabulary

    def ids(self, history: History) -> list[list[int]]:
        """Every row's new ids."""
        return history.tokens[:, self.start : int(history.position)].tolist()

    def texts(self, history: History) -> list[str]:
        """Every row's new text, as `Decoded.texts` has it."""
        prompts = self._ids_before(history, self.start, self.start)
        rows = self.ids(history)
        return [self._read(prompt, new) for prompt, new in zip(prompts, rows, strict=True)]

    def tails(self, history: History, characters: int) -> list[Tail]:
        """The end of every row's new text: its newest token and at least so many characters before it.

        Cheaper than the whole text, which would be decoded once more for every token.
        """
        position = int(history.position)
        new = position - self.start
        window = 4 * characters + 1  # characters of up to four bytes, in the worst case a token each
        while True:
            first = max(position - window, self.start)
            # A few tokens of context: some tokenizers drop the space in front of the first word.
            contexts = self._ids_before(history, first, _CONTEXT)
            rows = history.tokens[:, first:position].tolist()
            tails = [
                Tail(self._read(context, row[:-1]), self._read(context, row))
                for context, row in zip(contexts, rows, strict=True)
            ]
            if window >= new or all(len(tail.before) >= characters for tail in tails):
                return tails
            window *= 2

    def _ids_before(self, history: History, column: int, most: int) -> list[list[int]]:
        """Every row's ids in front of a column, at most so many, without padding."""
        columns = slice(max(column - most, 0), column)
        tokens, valid = history.tokens[:, columns].tolist(), history.valid[:, columns].tolist()
        return [
            [token for token, is_valid in zip(*row, strict=True) if is_valid]
            for row in zip(tokens, valid, strict=True)
        ]

    def _read(self, context: list[int], ids: list[int]) -> str:
        return self.vocabulary.text(context, ids) or ""


def start_reading_text(history: History, run: StoppingContext) -> NewText:
    """Reads from the prompt's end on."""
    return NewText(int(history.position), run.vocabulary)
