"""Strings that end a text."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.stopping_criterion import StoppingContext, StoppingCriterion
from decodekit.errors import DecodekitError
from decodekit.stopping._shared.new_text import NewText, start_reading_text


@final
@dataclass(frozen=True)
class StopStrings(StoppingCriterion):
    """Finishes a hypothesis whose new text contains one of some strings.

    A string may begin in one token and end in another, and a character may be split between tokens: the
    text is read, not the tokens. What the prompt says does not count. The text that is returned ends
    before the string, or after it if `include` says so; `Decoded.tokens` keeps the tokens that said it.
    Runs on the host.

    Args:
        strings: One string or several, none of them empty.
        include: Whether the returned text has the string at its end.

    Raises:
        TypeError: If `strings` is neither a string nor several.
        ValueError: If there are none, or one is empty or no string.
        DecodekitError: In a run, if the model has no tokenizer.

    Example:
        >>> dk.decode(dk.load(), "Once upon a time there was", dk.Greedy(), stop=StopStrings("who had"),
        ...           max_new_tokens=9).texts
        [[' a man ']]

    Hugging Face:
        `generate(stop_strings=..., tokenizer=...)`, which embeds every token of the vocabulary before it
        begins, lets a string begin in the prompt, and always includes it.
    """

    strings: str | Iterable[str]
    include: bool = False

    capturable = False
    reason: ClassVar[str] = "string"

    batch_independent = True

    def __post_init__(self) -> None:
        if not isinstance(self.strings, Iterable):
            raise TypeError(f"StopStrings: strings must be a string or several, got {self.strings!r:.80}.")
        given = (self.strings,) if isinstance(self.strings, str) else tuple(self.strings)
        for string in given:
            if not isinstance(string, str) or not string:
                raise ValueError(f"StopStrings: strings must be text of some length, got {string!r:.80}.")
        if not given:
            raise ValueError("StopStrings: there must be at least one string, got none.")
        object.__setattr__(self, "strings", given)  # a frozen field

    def init(self, history: History, run: StoppingContext) -> NewText:
        """Where the new text begins, and what reads it."""
        if run.vocabulary.tokenizer is None:
            raise DecodekitError(
                "StopStrings: strings need a tokenizer, and the model has none. Use EndIds, or "
                "HFModel(model, tokenizer)."
            )
        return start_reading_text(history, run)

    def apply(
        self,
        history: History,
        log_probs: Float32[Tensor, " rows"],
        memory: NewText,
    ) -> tuple[Bool[Tensor, " rows"], NewText]:
        """Rows whose text has one of the strings at its end."""
        tails = memory.tails(history, max(map(len, self.strings)))
        found = [self._find(tail.before, tail.now) is not None for tail in tails]
        return torch.tensor(found, device=log_probs.device), memory

    def trim(self, text: str, before: str, *, fired: bool) -> str | None:  # noqa: ARG002 - found, it holds
        """The text up to the string that its newest token completed, or up to that string's end."""
        found = self._find(before, text)
        return None if found is None else text[: found[1] if self.include else found[0]]

    def held_back(self, text: str) -> int:
        """The longest end of the text that one of the strings begins with."""
        return max(
            (
                length
                for string in self.strings
                for length in range(1, min(len(string) - 1, len(text)) + 1)
                if text.endswith(string[:length])
            ),
            default=0,
        )

    def _find(self, before: str, now: str) -> tuple[int, int] | None:
        """Where the first string stands that ends in what the newest token added; None if none does."""
        # A character that the token completed was something else before.
        stable_prefix = next(
            (place for place, pair in enumerate(zip(before, now, strict=False)) if pair[0] != pair[1]),
            min(len(before), len(now)),
        )
        found = []
        for string in self.strings:
            start = now.find(string, max(stable_prefix - len(string) + 1, 0))
            if start >= 0:
                found.append((start + len(string), start))
        if not found:
            return None
        end, start = min(found)
        return start, end
