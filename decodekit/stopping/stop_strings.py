"""Stop at strings."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.stopping_criterion import Finished, LogProbs, StoppingContext, StoppingCriterion
from decodekit.core.validation import TEXT, set_fields, shown
from decodekit.stopping._shared.new_text import NewText, check_tokenizer


@final
@dataclass(frozen=True)
class StopStrings(StoppingCriterion):
    """Finishes a hypothesis when its new text contains one of several strings.

    The text is searched, not the tokens: a string may begin in one token and end in another, and a character
    may be split between tokens. The prompt does not count. The returned text ends before the string, or
    after it with `include`; `Decoded.tokens` keeps the tokens of the string. Runs on the host.

    Args:
        strings: One string or several, none of them empty.
        include: True: the returned text has the string at its end.

    Raises:
        TypeError: If `strings` is neither a string nor a sequence of strings.
        ValueError: If `strings` is empty, or one of them is empty or not a string.
        DecodekitError: In a run, if the model has no tokenizer.

    Example:
        >>> dk.decode(dk.load(), "Once upon a time there was", dk.Greedy(), stop=StopStrings("who had"),
        ...           max_new_tokens=9).texts
        [[' a man ']]

    Hugging Face:
        `generate(stop_strings=..., tokenizer=...)`, which embeds every token of the vocabulary first, lets a
        string begin in the prompt, and always includes the string.
    """

    strings: str | Iterable[str]
    include: bool = False

    capturable = False
    reason: ClassVar[str] = "string"
    batch_independent = True

    def __post_init__(self) -> None:
        if not isinstance(self.strings, Iterable):
            raise TypeError(f"StopStrings: strings must be a string or several, got {shown(self.strings)}.")
        strings = (self.strings,) if isinstance(self.strings, str) else tuple(self.strings)
        for string in strings:
            TEXT.check("StopStrings", "strings", string)
        if not strings:
            raise ValueError("StopStrings: there must be at least one string, got none.")
        set_fields(self, strings=strings)

    @override
    def init(self, history: History, run: StoppingContext) -> NewText:
        check_tokenizer(run, "StopStrings: strings need", "EndIds")
        return NewText(int(history.position), run.vocabulary)

    @override
    def apply(self, history: History, log_probs: LogProbs, memory: NewText) -> tuple[Finished, NewText]:
        tails = memory.tails(history, max(map(len, self.strings)))
        found = [self._find(before, now) is not None for before, now in tails]
        return torch.tensor(found, device=log_probs.device), memory

    @override
    def trim(self, text: str, before: str, *, fired: bool) -> str | None:
        found = self._find(before, text)
        return None if found is None else text[: found[1] if self.include else found[0]]

    @override
    def held_back(self, text: str) -> int:
        # The longest suffix of the text that is a prefix of one of the strings.
        lengths = (
            length
            for string in self.strings
            for length in range(1, min(len(string) - 1, len(text)) + 1)
            if text.endswith(string[:length])
        )
        return max(lengths, default=0)

    def _find(self, before: str, now: str) -> tuple[int, int] | None:
        """Return start and end of the string that ends first within the newest token; None if none does."""
        # The newest token may complete a character, which the previous text shows as another character.
        pairs = enumerate(zip(before, now, strict=False))
        stable = next((place for place, (old, new) in pairs if old != new), min(len(before), len(now)))
        starts = [(now.find(string, max(stable - len(string) + 1, 0)), string) for string in self.strings]
        found = [(start + len(string), start) for start, string in starts if start >= 0]
        return min(found)[::-1] if found else None
