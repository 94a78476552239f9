"""The text itself as draft."""

from dataclasses import dataclass
from typing import final

from decodekit.core.prompt import Prompt
from decodekit.core.validation import is_count
from decodekit.decoders.speculative.drafts.base import Choose, Draft, DraftSession, Proposal
from decodekit.models.protocols import Model


@final
@dataclass(frozen=True)
class PromptLookup(Draft):
    r"""Drafts what followed the last few tokens where they stood before, in the prompt or the continuation.

    The longest of the text's last `max_ngram`, ..., 1 tokens that stood there before counts, at its latest
    place. Where that is near the end, what is proposed is copied from what was proposed: a repetition goes
    on. Costs no forward pass. Good where the answer quotes: summaries, questions about a text, code edits.
    In front of an encoder-decoder's text stands what its encoder has read.

    Args:
        max_ngram: Tokens to look for at most, at least 1. Usual value: 3.

    Raises:
        ValueError: If `max_ngram` is not an integer of at least 1.

    Example:
        >>> model = dk.testing.MarkovModel([[0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0]])
        >>> out = dk.decode(model, [[0, 1, 2, 0]], dk.Speculative(PromptLookup()), max_new_tokens=6)
        >>> out.tokens, out.report.passes
        (tensor([[[1, 2, 0, 1, 2, 0]]]), tensor([[1]]))

    Source:
        Saxena, 2023, https://github.com/apoorvumang/prompt-lookup-decoding, which takes the first place.

    Hugging Face:
        `generate(prompt_lookup_num_tokens=..., max_matching_ngram_size=max_ngram)`, for one prompt at a
        time; it takes the first place, and proposes nothing beyond the end of the text.
    """

    max_ngram: int = 3

    def __post_init__(self) -> None:
        if not is_count(self.max_ngram, 1):
            raise ValueError(
                f"PromptLookup: max_ngram must be an integer of at least 1, got {self.max_ngram!r}."
            )

    def start(
        self,
        model: Model,  # noqa: ARG002 - the contract's signature
        prompt: Prompt,
        *,
        rows_per_prompt: int,
        capacity: int,  # noqa: ARG002
    ) -> DraftSession:
        """The prompts' texts."""
        texts = prompt.ids()
        if prompt.source is not None:
            rows = zip(prompt.source.tokens.cpu(), prompt.source.valid.cpu(), texts, strict=True)
            texts = [tokens[valid].tolist() + text for tokens, valid, text in rows]
        return Lookup([Seen(self.max_ngram, text) for text in texts for _ in range(rows_per_prompt)])


class Lookup(DraftSession):
    """A run: every row's text."""

    def __init__(self, rows: list["Seen"]) -> None:
        self._rows = rows

    def propose(self, said: list[list[int]], most: list[int], choose: Choose) -> Proposal:  # noqa: ARG002
        """What followed the last tokens of each row where they stood before."""
        for row, tokens in zip(self._rows, said, strict=True):
            for token in tokens:
                row.append(token)
        return Proposal([row.next(allowed) for row, allowed in zip(self._rows, most, strict=True)])


class Seen:
    """A text, and for every few tokens in it where they stood last, except at its end.

    Args:
        max_ngram: How many tokens at most.
        text: What there is already.
    """

    def __init__(self, max_ngram: int, text: list[int]) -> None:
        self._max_ngram = max_ngram
        self._text: list[int] = []
        self._followed_at: dict[tuple[int, ...], int] = {}
        for token in text:
            self.append(token)

    def append(self, token: int) -> None:
        """The text with one more token."""
        for ngram in self._endings():
            self._followed_at[ngram] = len(self._text)
        self._text.append(token)

    def next(self, most: int) -> list[int]:
        """What followed the longest ending that stood there before; nothing if none did."""
        places = (self._followed_at[ngram] for ngram in self._endings() if ngram in self._followed_at)
        place = next(places, None)
        if place is None:
            return []
        text = list(self._text)
        for column in range(most):
            text.append(text[place + column])
        return text[len(self._text) :]

    def _endings(self) -> list[tuple[int, ...]]:
        """The last tokens, longest first."""
        longest = min(self._max_ngram, len(self._text))
        return [tuple(self._text[-length:]) for length in range(longest, 0, -1)]
