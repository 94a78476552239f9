"""DRY: a penalty for going on with a sequence that was there before."""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from jaxtyping import Bool, Float32, Int32, Int64
from torch import Tensor
from torch.nn.functional import pad

from decodekit.core.history import History
from decodekit.core.validation import is_count, is_finite, read_ids
from decodekit.processors._shared.parameters import PerPrompt, check_per_prompt, for_rows, per_prompt
from decodekit.processors.base import LogitsProcessor, device_ids


@final
@dataclass(frozen=True)
class DRY(LogitsProcessor):
    r"""Makes every token less likely that would prolong a repetition, the more the longer it is.

    For a token v let n(v) be the largest n such that the last n tokens, followed by v, stand in the
    text already. Where n(v) is at least `allowed_length`,

    $$s'(v) = s(v) - \text{multiplier} \cdot \text{base}^{\,n(v) - \text{allowed\_length}}.$$

    Args:
        multiplier: The penalty of a repetition of `allowed_length` tokens, at least 0, in units of the
            scores; one number, or one for each prompt. Usual value: 0.8.
        base: Growth of the penalty a token, at least 1; one number, or one for each prompt.
        allowed_length: How many tokens must have been repeated before the next one is penalised, at
            least 1; one number, or one for each prompt.
        breakers: Ids that no repetition reaches across, and that are never penalised: line breaks,
            quotation marks, the marks of a chat template.
        window: Looks at this many of the last tokens only, at least 1; None: at all; one number, or
            one for each prompt.
        max_match: Counts repetitions up to this many tokens, which bounds the penalty and the memory.
        prompt: Whether the prompt counts as text that can be repeated.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon a time", dk.Greedy(), dk.DRY(0.8), max_new_tokens=5)
        >>> out.lengths
        tensor([[5]])

    Source:
        p-e-w, 2024, https://github.com/oobabooga/text-generation-webui/pull/5677.

    Hugging Face:
        None. Tokens and numbers are those of text-generation-webui, except that it takes left padding
        for text.
    """

    multiplier: PerPrompt
    base: PerPrompt = 1.75
    allowed_length: PerPrompt = 2
    breakers: int | Iterable[int] = ()
    _: KW_ONLY
    window: PerPrompt | None = None
    max_match: int = 50
    prompt: bool = True

    batch_independent = True

    def __post_init__(self) -> None:
        at_least, length = "a finite number of at least {}", "an integer of at least 1"
        kept: dict[str, object] = {
            "multiplier": per_prompt(
                "DRY", "multiplier", self.multiplier, lambda x: _is_finite(x, 0), at_least.format(0)
            ),
            "base": per_prompt("DRY", "base", self.base, lambda x: _is_finite(x, 1), at_least.format(1)),
            "allowed_length": per_prompt("DRY", "allowed_length", self.allowed_length, _is_length, length),
            "breakers": read_ids("DRY", self.breakers),
        }
        if self.window is not None:
            kept["window"] = per_prompt("DRY", "window", self.window, _is_length, f"None or {length}")
        if not is_count(self.max_match, 1):
            raise ValueError(f"DRY: max_match must be {length}, got {self.max_match!r}.")
        if type(self.prompt) is not bool:
            raise ValueError(f"DRY: prompt must be True or False, got {self.prompt!r}.")
        for name, value in kept.items():
            object.__setattr__(self, name, value)  # a frozen field

    def init(self, history: History) -> Int64[Tensor, ""]:
        """The first column that counts."""
        check_per_prompt(self, history)
        return torch.zeros_like(history.position) if self.prompt else history.position.clone()

    def apply(
        self, history: History, scores: Float32[Tensor, "rows vocab"], memory: Int64[Tensor, ""]
    ) -> tuple[Float32[Tensor, "rows vocab"], Int64[Tensor, ""]]:
        """The scores, less the penalties."""
        columns = torch.arange(history.tokens.shape[1], device=scores.device)
        text = history.valid & (columns >= memory)
        if self.window is not None:
            text = text & (columns >= history.position - for_rows(self.window, history, history.tokens))
        longest = self._longest(history, text, scores.shape[-1]).to(scores.dtype)
        # The largest number stands in for infinity, which would make NaN of an infinite score.
        most = torch.finfo(scores.dtype).max
        excess = longest - for_rows(self.allowed_length, history, scores)
        growth = torch.pow(for_rows(self.base, history, scores), excess).clamp(max=most)
        penalty = (growth * for_rows(self.multiplier, history, scores)).clamp(max=most)
        return torch.where((longest > 0) & (excess >= 0), scores - penalty, scores), memory

    def _longest(
        self, history: History, text: Bool[Tensor, "rows capacity"], vocab: int
    ) -> Int32[Tensor, "rows vocab"]:
        """For every id the length of the longest repetition it would prolong; 0 for none."""
        rows, capacity = history.tokens.shape
        device = history.tokens.device
        longest = torch.zeros((rows, vocab + 1), dtype=torch.int32, device=device)
        if capacity == 1:
            return longest[:, :vocab]
        cap = min(self.max_match, capacity)
        # Room on the left: the suffix that ends at any column has `cap` tokens, some of them no text.
        tokens, real = pad(history.tokens, (cap - 1, 0)), pad(text, (cap - 1, 0), value=False)
        newest = history.position - 1 + torch.arange(cap, device=device)  # of the whole text
        suffix = tokens.index_select(1, newest)
        breakers = device_ids(read_ids("DRY", self.breakers), device)
        unbroken = real.index_select(1, newest) & ~(suffix[..., None] == breakers).any(-1)
        # [rows capacity-1 cap]: the suffix of every column that has a token after it
        same = tokens[:, :-1].unfold(1, cap, 1) == suffix[:, None]
        same = same & real[:, :-1].unfold(1, cap, 1) & unbroken[:, None]
        # Counted from the end: the nearest difference is where the repetition begins.
        distance = torch.arange(cap - 1, -1, -1, dtype=torch.int32, device=device)
        lengths = torch.where(same, cap, distance).amin(-1)
        # The token after it; a spare last id takes what does not count.
        following = history.tokens[:, 1:]
        ids = torch.where(text[:, 1:] & (following < vocab), following, vocab)
        longest = longest.scatter_reduce(1, ids, lengths, "amax")
        return longest.index_fill(1, breakers.clamp(max=vocab), 0)[:, :vocab]


def _is_length(value: object) -> bool:
    return is_count(value, 1)


def _is_finite(value: object, least: float) -> bool:
    return is_finite(value) and value >= least
