"""New ids and new text of every row, read on the host."""

from typing import NamedTuple

from decodekit.core.history import History
from decodekit.core.stopping_criterion import StoppingContext
from decodekit.core.vocabulary import Vocabulary
from decodekit.errors import DecodekitError

_CONTEXT = 4  # tokens


class NewText(NamedTuple):
    """A reader of the tokens after the prompt, which begin at column `start`."""

    start: int
    vocabulary: Vocabulary

    def ids(self, history: History) -> list[list[int]]:
        """Return every row's new ids."""
        return history.tokens[:, self.start : int(history.position)].tolist()

    def texts(self, history: History) -> list[str]:
        """Return every row's new text, equal to `Decoded.texts`."""
        prompts = self._ids_before(history, self.start, self.start)
        return [self._read(*row) for row in zip(prompts, self.ids(history), strict=True)]

    def tails(self, history: History, characters: int) -> list[tuple[str, str]]:
        """Return the end of every row's new text, without its newest token and with it.

        At least `characters` characters precede that token, if there are as many. Cheaper than the whole
        text.
        """
        position = int(history.position)
        new = position - self.start
        window = 4 * characters + 1  # at worst a character is four bytes, and each byte a token
        while True:
            first = max(position - window, self.start)
            # A few tokens of context: some tokenizers drop the space in front of the first word.
            contexts = self._ids_before(history, first, _CONTEXT)
            rows = history.tokens[:, first:position].tolist()
            tails = [
                (self._read(context, row[:-1]), self._read(context, row))
                for context, row in zip(contexts, rows, strict=True)
            ]
            if window >= new or all(len(before) >= characters for before, _ in tails):
                return tails
            window *= 2

    def _ids_before(self, history: History, column: int, number: int) -> list[list[int]]:
        """Return every row's ids in up to `number` columns before a column, without padding."""
        columns = slice(max(column - number, 0), column)
        tokens, valid = history.tokens[:, columns].tolist(), history.valid[:, columns].tolist()
        return [
            [token for token, is_valid in zip(*row, strict=True) if is_valid]
            for row in zip(tokens, valid, strict=True)
        ]

    def _read(self, context: list[int], ids: list[int]) -> str:
        return self.vocabulary.text(context, ids) or ""


def check_tokenizer(run: StoppingContext, requirement: str, alternative: str) -> None:
    """Raise a `DecodekitError` if the model has no tokenizer."""
    if run.vocabulary.tokenizer is None:
        raise DecodekitError(
            f"{requirement} a tokenizer, and the model has none. Use {alternative}, or "
            "HFModel(model, tokenizer)."
        )
