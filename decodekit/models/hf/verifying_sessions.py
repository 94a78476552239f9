"""Runs of a transformers model whose rows read several tokens a pass, and take them back.

The rows of a batch accept different numbers of tokens, and a cache has one length. So after every pass the
rows are pushed to the right, where the next token goes, as prompts of different lengths are; a model that
cannot ignore what is then to the left of them counts from the left instead, and reads again what its
fastest rows have in advance of the slowest.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.models.hf.sessions import Forward, last_logits, positions


class AlignedSession:
    """A run whose rows end in the same column: after every pass their cache is pushed to the right.

    Args:
        model: The model's forward pass.
        prompt_mask: Which columns of the prompts hold tokens.
        capacity: Not needed: nothing is allocated ahead.
        cached: Must be True.
    """

    def __init__(
        self,
        model: Forward,
        prompt_mask: Bool[Tensor, "batch length"],
        capacity: int,
        *,
        cached: bool,
    ) -> None:
        del capacity, cached
        self._model = model
        self._cache = model.new_cache(whole=True)
        self._mask = prompt_mask
        nothing = prompt_mask.new_zeros(len(prompt_mask), dtype=torch.long)
        # At the end of each row: tokens read since the last `keep`, and behind them columns of junk.
        self._unsure, self._junk = nothing, nothing

    def prefill(self, tokens: Int64[Tensor, "rows length"]) -> Float32[Tensor, "rows vocab"]:
        """The logits after the prompts."""
        return last_logits(self._model.forward(tokens, self._mask, positions(self._mask), cache=self._cache))

    def widen(self, rows: Int64[Tensor, " rows"]) -> None:
        """Makes row `i` what prompt `rows[i]` is."""
        self._cache.reorder(rows)
        self._mask, self._unsure, self._junk = (
            tensor.index_select(0, rows) for tensor in (self._mask, self._unsure, self._junk)
        )

    def extend(
        self, tokens: Int64[Tensor, "rows columns"], counts: Int64[Tensor, " rows"]
    ) -> Float32[Tensor, "rows columns vocab"]:
        """The logits after each of several more tokens on every row, in one pass."""
        self._align(self._junk)
        columns = tokens.shape[1]
        # What does not count stands to the right of what does, which never looks at it.
        said = torch.arange(columns, device=tokens.device) < counts[:, None]
        before = self._mask.sum(-1, keepdim=True)
        places = before + torch.minimum(torch.arange(columns, device=tokens.device), (counts - 1)[:, None])
        self._mask = torch.cat([self._mask, torch.ones_like(said)], 1)
        tokens = tokens.masked_fill(~said, 0)
        output = self._model.forward(tokens, self._mask, places, cache=self._cache, keep=columns)
        self._unsure, self._junk = self._unsure + counts, columns - counts
        logits: Tensor = output.logits[:, -columns:].to(torch.float32, copy=True)
        return logits

    def keep(self, counts: Int64[Tensor, " rows"]) -> None:
        """Takes back what each row has read since the last `keep`, except its first `counts` tokens."""
        self._align(self._junk + self._unsure - counts)
        self._unsure = torch.zeros_like(counts)

    def _align(self, refused: Int64[Tensor, " rows"]) -> None:
        """Drops so many columns at the end of each row, and pushes what is left to the right."""
        least, most = (int(number) for number in refused.aminmax())
        width = self._mask.shape[1]
        self._junk = torch.zeros_like(refused)
        if most == 0:
            return
        columns = torch.arange(width, device=refused.device)
        if least < most:
            columns = columns - refused[:, None]
            mask = self._mask.gather(1, columns.clamp(min=0)) & (columns >= 0)
        else:
            mask = self._mask[:, : width - most]
        first = int(mask.long().argmax(-1).min())  # what is empty on all rows is left out
        self._mask = mask[:, first:]
        if least < most:
            self._cache.gather(columns[:, first:].clamp(min=0))
        else:
            self._cache.crop(first, width - most)


class RereadingSession:
    """A run whose rows begin in the same column: what fast rows have in advance of slow ones is read again.

    Args:
        model: The model's forward pass.
        prompt_mask: Which columns of the prompts hold tokens.
        capacity: Columns that prompts and continuations take at most.
        cached: False: everything is read again.
    """

    def __init__(
        self,
        model: Forward,
        prompt_mask: Bool[Tensor, "batch length"],
        capacity: int,
        *,
        cached: bool,
    ) -> None:
        self._model = model
        self._cache = model.new_cache(whole=True) if cached else None
        (batch, length), device = prompt_mask.shape, prompt_mask.device
        mask = torch.ones((batch, capacity), dtype=torch.bool, device=device)
        mask[:, :length] = prompt_mask
        self._mask = mask
        self._wants_mask = model.wants_mask or not bool(prompt_mask.all())
        self._tokens = torch.zeros((batch, capacity), dtype=torch.long, device=device)
        # Of each row: how long it is, the part that `keep` may take back, and the part that is in the cache.
        self._lengths, self._unsure, self._known = [length] * batch, [0] * batch, [length] * batch

    def prefill(self, tokens: Int64[Tensor, "rows length"]) -> Float32[Tensor, "rows vocab"]:
        """The logits after the prompts."""
        length = tokens.shape[1]
        self._tokens[:, :length] = tokens
        return last_logits(self._read(0, length, keep=1))

    def widen(self, rows: Int64[Tensor, " rows"]) -> None:
        """Makes row `i` what prompt `rows[i]` is."""
        if self._cache is not None:
            self._cache.reorder(rows)
        self._mask, self._tokens = self._mask.index_select(0, rows), self._tokens.index_select(0, rows)
        self._lengths, self._unsure, self._known = (
            [numbers[row] for row in rows.tolist()] for numbers in (self._lengths, self._unsure, self._known)
        )

    def extend(
        self, tokens: Int64[Tensor, "rows columns"], counts: Int64[Tensor, " rows"]
    ) -> Float32[Tensor, "rows columns vocab"]:
        """The logits after each of several more tokens on every row, in one pass."""
        before, numbers = self._lengths, counts.tolist()
        self._lengths = [length + number for length, number in zip(before, numbers, strict=True)]
        self._unsure = [unsure + number for unsure, number in zip(self._unsure, numbers, strict=True)]
        for row, number in enumerate(numbers):
            self._tokens[row, before[row] : self._lengths[row]] = tokens[row, :number]
        asked = [row for row, number in enumerate(numbers) if number]
        start = 0 if self._cache is None else min(self._known[row] for row in asked)
        stop, first = max(self._lengths[row] for row in asked), min(before[row] for row in asked)
        if self._cache is not None and start < self._cache.columns:
            self._cache.crop(0, start)
        output = self._read(start, stop, keep=stop - first)
        self._known = [
            self._lengths[row] if number else min(self._known[row], stop)
            for row, number in enumerate(numbers)
        ]
        places = torch.tensor(before, device=tokens.device)[:, None] - first
        places = places + torch.arange(tokens.shape[1], device=tokens.device)
        logits = output.logits[:, first - stop :]
        places = places.clamp(min=0, max=stop - first - 1)[..., None].expand(-1, -1, logits.shape[-1])
        picked: Tensor = logits.gather(1, places).float()
        return picked

    def keep(self, counts: Int64[Tensor, " rows"]) -> None:
        """Takes back what each row has read since the last `keep`, except its first `counts` tokens."""
        for row, count in enumerate(counts.tolist()):
            self._lengths[row] -= self._unsure[row] - count
            self._known[row] = min(self._known[row], self._lengths[row])
        self._unsure = [0] * len(self._unsure)

    def _read(self, start: int, stop: int, *, keep: int) -> Any:  # noqa: ANN401 - transformers' ModelOutput
        mask = self._mask[:, :stop] if self._wants_mask else None
        places = positions(self._mask)[:, start:stop]
        return self._model.forward(self._tokens[:, start:stop], mask, places, cache=self._cache, keep=keep)
