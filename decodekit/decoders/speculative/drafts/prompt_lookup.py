"""Drafts copied from the prompt and the continuation."""

from dataclasses import dataclass
from itertools import cycle, islice
from typing import final

from typing_extensions import override

from decodekit.core.prompt import Prompt
from decodekit.core.validation import at_least, check_fields
from decodekit.decoders.speculative.drafts.base import Draft, DraftSession, Proposal, TokenChooser
from decodekit.models.protocols import Model


@final
@dataclass(frozen=True)
class PromptLookup(Draft):
    r"""Drafts the tokens that followed an earlier occurrence of the last few tokens.

    Searches prompt and continuation for the longest of the last `max_ngram`, ..., 1 tokens that occurred
    before, and proposes the tokens after its latest occurrence. If the text ends before the proposal is long
    enough, the proposal repeats its own tokens from the first. Costs no forward pass. Good if the answer
    quotes: summaries, questions about a text, code edits. For an encoder-decoder, the source is
    searched too.

    Args:
        max_ngram: Longest n-gram to search for, at least 1. Usual value: 3.

    Raises:
        ValueError: If `max_ngram` is not an integer of at least 1.

    Example:
        >>> model = dk.testing.MarkovModel([[0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0]])
        >>> out = dk.decode(model, [[0, 1, 2, 0]], dk.Speculative(PromptLookup()), max_new_tokens=6)
        >>> out.tokens, out.report.passes
        (tensor([[[1, 2, 0, 1, 2, 0]]]), tensor([[1]]))

    Source:
        Saxena, 2023, https://github.com/apoorvumang/prompt-lookup-decoding, which takes the first occurrence.

    Hugging Face:
        `generate(prompt_lookup_num_tokens=..., max_matching_ngram_size=max_ngram)`, for one prompt at a
        time; it takes the first occurrence, and proposes nothing beyond the last token.
    """

    max_ngram: int = 3

    def __post_init__(self) -> None:
        check_fields(self, max_ngram=at_least(1))

    @override
    def start(self, model: Model, prompt: Prompt, *, rows_per_prompt: int, capacity: int) -> DraftSession:
        sequences = prompt.ids()
        if prompt.source is not None:
            rows = zip(prompt.source.tokens.cpu(), prompt.source.valid.cpu(), sequences, strict=True)
            sequences = [tokens[valid].tolist() + ids for tokens, valid, ids in rows]
        return PromptLookupSession(
            [NGramIndex(self.max_ngram, ids) for ids in sequences for _ in range(rows_per_prompt)]
        )


class PromptLookupSession(DraftSession):
    """A run of prompt lookup: one index per row."""

    def __init__(self, rows: list["NGramIndex"]) -> None:
        self._rows = rows

    @override
    def propose(self, emitted: list[list[int]], max_tokens: list[int], choose: TokenChooser) -> Proposal:
        for index, tokens in zip(self._rows, emitted, strict=True):
            for token in tokens:
                index.append(token)
        return Proposal([index.following(most) for index, most in zip(self._rows, max_tokens, strict=True)])


class NGramIndex:
    """A sequence, and the latest occurrence of each of its n-grams, except the one at its end."""

    def __init__(self, max_ngram: int, tokens: list[int]) -> None:
        self._max_ngram = max_ngram
        self._tokens: list[int] = []
        self._next_place: dict[tuple[int, ...], int] = {}  # the place after an n-gram's latest occurrence
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Add a token to the sequence."""
        for ngram in self._last_ngrams():
            self._next_place[ngram] = len(self._tokens)
        self._tokens.append(token)

    def following(self, number: int) -> list[int]:
        """The `number` tokens after the earlier occurrence of the longest last n-gram, if there is one."""
        ngrams = self._last_ngrams()
        place = next((self._next_place[ngram] for ngram in ngrams if ngram in self._next_place), None)
        if place is None:
            return []
        return list(islice(cycle(self._tokens[place:]), number))

    def _last_ngrams(self) -> list[tuple[int, ...]]:
        """The n-grams at the end, longest first."""
        longest = min(self._max_ngram, len(self._tokens))
        return [tuple(self._tokens[-length:]) for length in range(longest, 0, -1)]
