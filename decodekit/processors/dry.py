"""DRY: a penalty on continuing a sequence that occurred before."""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from jaxtyping import Bool, Int32
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import (
    FLAG,
    FROM_ONE,
    NON_NEGATIVE,
    at_least,
    check_fields,
    read_ids,
    set_fields,
)
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import Column, NewTokenProcessor, Scores, device_ids

_WINDOW = at_least(1)._replace(words="None or an integer of at least 1")


@final
@dataclass(frozen=True)
class DRY(NewTokenProcessor):
    r"""Penalizes tokens that would extend a repetition. The penalty grows with the length of the repetition.

    For a token v let n(v) be the largest n such that the last n tokens, followed by v, occurred before. If
    n(v) is at least `allowed_length`,

    $$s'(v) = s(v) - \text{multiplier} \cdot \text{base}^{\,n(v) - \text{allowed\_length}}.$$

    Args:
        multiplier: The penalty on a repetition of `allowed_length` tokens, at least 0, in units of the
            scores; one number, or one per prompt. Usual value: 0.8.
        base: Factor of the penalty per token, at least 1; one number, or one per prompt.
        allowed_length: Repeated tokens after which the next one is penalized, at least 1; one number, or
            one per prompt.
        breakers: Ids that end every repetition and are never penalized: line breaks, quotation marks, the
            marks of a chat template.
        window: Number of last tokens that count, at least 1; one number, or one per prompt. None: all.
        max_match: Counts repetitions up to this many tokens, which bounds the penalty and the memory.
        include_prompt: True to count the prompt's tokens too.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon a time", dk.Greedy(), dk.DRY(0.8), max_new_tokens=5)
        >>> out.lengths
        tensor([[5]])

    Source:
        p-e-w, 2024, https://github.com/oobabooga/text-generation-webui/pull/5677.

    Hugging Face:
        None. The result is that of text-generation-webui, which however treats left padding as tokens.
    """

    multiplier: PerPrompt
    base: PerPrompt = 1.75
    allowed_length: PerPrompt = 2
    breakers: int | Iterable[int] = ()
    _: KW_ONLY
    window: PerPrompt | None = None
    max_match: int = 50
    include_prompt: bool = True

    def __post_init__(self) -> None:
        set_per_prompt(self, multiplier=NON_NEGATIVE, base=FROM_ONE, allowed_length=at_least(1))
        set_fields(self, breakers=read_ids("DRY", self.breakers))
        if self.window is not None:
            set_per_prompt(self, window=_WINDOW)
        check_fields(self, max_match=at_least(1), include_prompt=FLAG)

    @override
    def process(self, history: History, scores: Scores, first_new: Column) -> Scores:
        columns = torch.arange(history.tokens.shape[1], device=scores.device)
        counted = history.valid & (columns >= (0 if self.include_prompt else first_new))
        if self.window is not None:
            counted = counted & (columns >= history.position - for_rows(self.window, history, history.tokens))
        longest = self._longest(history, counted, scores.shape[-1]).to(scores.dtype)
        # The largest number replaces infinity, which would turn an infinite score into NaN.
        finite_max = torch.finfo(scores.dtype).max
        excess = longest - for_rows(self.allowed_length, history, scores)
        growth = torch.pow(for_rows(self.base, history, scores), excess).clamp(max=finite_max)
        penalty = (growth * for_rows(self.multiplier, history, scores)).clamp(max=finite_max)
        return torch.where((longest > 0) & (excess >= 0), scores - penalty, scores)

    def _longest(
        self, history: History, counted: Bool[Tensor, "rows capacity"], vocab: int
    ) -> Int32[Tensor, "rows vocab"]:
        """Return the length of the longest repetition that each id would extend; 0 for none."""
        rows, capacity = history.tokens.shape
        device = history.tokens.device
        longest = torch.zeros((rows, vocab + 1), dtype=torch.int32, device=device)
        if capacity == 1:
            return longest[:, :vocab]
        cap = min(self.max_match, capacity)
        # Padding on the left: the suffix that ends at any column has `cap` tokens, some of them uncounted.
        tokens, valid = pad(history.tokens, (cap - 1, 0)), pad(counted, (cap - 1, 0), value=False)
        newest = history.position - 1 + torch.arange(cap, device=device)  # the suffix of the whole row
        suffix = tokens.index_select(1, newest)
        breakers = device_ids(read_ids("DRY", self.breakers), device)
        unbroken = valid.index_select(1, newest) & ~(suffix[..., None] == breakers).any(-1)
        # [rows capacity-1 cap]: the suffix of every column that has a token after it
        same = tokens[:, :-1].unfold(1, cap, 1) == suffix[:, None]
        same = same & valid[:, :-1].unfold(1, cap, 1) & unbroken[:, None]
        # Counted from the end: the nearest difference is where the repetition begins.
        distance = torch.arange(cap - 1, -1, -1, dtype=torch.int32, device=device)
        lengths = torch.where(same, cap, distance).amin(-1)
        # The token after each suffix; a spare last id collects the uncounted columns.
        following = history.tokens[:, 1:]
        ids = torch.where(counted[:, 1:] & (following < vocab), following, vocab)
        longest = longest.scatter_reduce(1, ids, lengths, "amax")
        return longest.index_fill(1, breakers.clamp(max=vocab), 0)[:, :vocab]
