"""Sessions of a transformers model: with one cache entry per row, and without a cache."""

from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from typing_extensions import override

from decodekit.core.history import rows_of
from decodekit.core.prompt import Prompt
from decodekit.models.hf.cache import Cache
from decodekit.models.hf.forwards.forward import Forward, MergeableForward, count_positions, last_logits
from decodekit.models.protocols import Columns, Ids, Logits, MergeableSession, PerRow, ShrinkingSession


class RowSession(MergeableSession):
    """A session with one cache entry per row.

    Prompts and continuations have at most `capacity` columns. A given cache holds the first `known` columns.
    """

    def __init__(
        self, model: Forward, prompt_mask: Columns, capacity: int, cache: Cache | None = None, known: int = 0
    ) -> None:
        self._model = model
        self._cache = model.new_cache() if cache is None else cache
        self._known = known
        batch, self._column = prompt_mask.shape
        self._batch, self._has_merged = batch, False
        # The mask for the whole capacity: every column after the prompt will hold a token.
        mask = torch.ones((batch, capacity), dtype=torch.bool, device=prompt_mask.device)
        mask[:, : self._column] = prompt_mask
        self._mask = None if bool(prompt_mask.all()) and not model.wants_mask else mask
        self._positions = count_positions(mask)

    def prefill(self, tokens: Ids) -> Logits:
        """The logits after the prompts."""
        return self._logits(tokens[:, self._known :], slice(self._known, self._column))

    @override
    def advance(self, tokens: PerRow, source_rows: PerRow | None) -> Logits:
        if source_rows is not None:  # all rows of a prompt have the same mask and positions
            self._cache.reorder(source_rows)
        self._column += 1
        return self._logits(tokens[:, None], slice(self._column - 1, self._column))

    def cache_of(self, source_rows: PerRow | None) -> Any:
        """The cache of transformers, with its rows in the order of the next tokens."""
        if source_rows is not None:
            self._cache.reorder(source_rows)
        return self._cache.content

    def widen(self, rows_per_prompt: int) -> PerRow:
        """Makes `rows_per_prompt` rows of every prompt; returns the prompt of each row."""
        rows = self._repeat(rows_per_prompt)
        self._cache.widen(rows if rows_per_prompt > 1 else None, self._positions.shape[1])
        return rows

    def continue_widened(self, rows_per_prompt: int, shared: int) -> None:
        """Continues from a cache that is widened already; a prompt's rows have `shared` equal columns."""
        self._repeat(rows_per_prompt)
        self._cache.widen(None, self._positions.shape[1], shared=shared)

    def _repeat(self, rows_per_prompt: int) -> PerRow:
        rows = torch.arange(self._batch, device=self._positions.device).repeat_interleave(rows_per_prompt)
        if rows_per_prompt > 1:
            self._take(rows)
        return rows

    def _take(self, rows: PerRow) -> None:
        self._positions = self._positions.index_select(0, rows)
        self._mask = None if self._mask is None else self._mask.index_select(0, rows)

    @property
    @override
    def can_evict(self) -> bool:
        return self._cache.has_layers  # False for the state object of a family

    @override
    def keep_prompts(self, prompts: Int64[Tensor, " kept"]) -> None:
        rows = rows_of(prompts, len(self._positions) // self._batch)
        self._take(rows)
        # Columns that held only tokens of evicted rows.
        first = int(self.columns().any(0).int().argmax()) if self._has_merged else 0
        self._positions = self._positions[:, first:]
        self._mask = None if self._mask is None else self._mask[:, first:]
        self._column -= first
        self._cache.select(rows, first)
        if isinstance(self._model, MergeableForward):
            self._model.keep_prompts(prompts, self._batch, self._cache)
        self._batch = len(prompts)

    @override
    def can_merge(self) -> bool:
        forward = self._model
        return self._cache.is_buffered and isinstance(forward, MergeableForward) and forward.can_merge()

    @override
    def merge(self, other: "RowSession") -> None:  # the newest columns of both become the same
        model, cache, batch = other._model, other._cache, other._batch  # noqa: SLF001 - of this class
        if isinstance(self._model, MergeableForward):
            self._model.merge(model, (self._batch, batch), (self._cache, cache))
        masks = [session.columns() for session in (self, other)]
        columns = max(int(mask.any(0).sum()) for mask in masks)  # empty columns come first, and are dropped
        remaining = max(self.remaining, other.remaining)
        shifts = (columns - masks[0].shape[1], columns - masks[1].shape[1])
        self._cache.merge(cache, shifts, columns, columns + remaining)
        mask = torch.cat(list(map(nn.functional.pad, masks, [(shift, remaining) for shift in shifts])))
        mask[:, columns:] = True
        self._mask = None if bool(mask.all()) and not self._model.wants_mask else mask
        self._positions = count_positions(mask)
        self._column, self._batch, self._has_merged = columns, self._batch + batch, True

    @property
    def remaining(self) -> int:
        """The largest number of columns that may follow."""
        return self._positions.shape[1] - self._column

    def columns(self) -> Columns:
        """True for the columns so far that hold tokens."""
        if self._mask is None:
            return torch.ones_like(self._positions[:, : self._column], dtype=torch.bool)
        return self._mask[:, : self._column]

    def _logits(self, tokens: Ids, columns: slice) -> Logits:
        mask = None if self._mask is None else self._mask[:, : columns.stop]
        output = self._model.forward(tokens, mask, self._positions[:, columns], cache=self._cache)
        return last_logits(output)


class RecomputingSession(ShrinkingSession):
    """A session without a cache: every step reads the whole sequences again."""

    def __init__(self, model: Forward, prompt_mask: Columns) -> None:
        self._model = model
        self._mask = prompt_mask
        self._batch = len(prompt_mask)
        self._tokens = torch.empty_like(prompt_mask, dtype=torch.long)

    def prefill(self, tokens: Ids) -> Logits:
        """The logits after the prompts."""
        self._tokens = tokens
        return self._logits()

    @override
    def advance(self, tokens: PerRow, source_rows: PerRow | None) -> Logits:
        if source_rows is not None:
            self._take(source_rows)
        self._tokens = torch.cat([self._tokens, tokens[:, None]], 1)
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], 1)
        return self._logits()

    def widen(self, rows_per_prompt: int) -> PerRow:
        """Makes `rows_per_prompt` rows of every prompt; returns the prompt of each row."""
        rows = torch.arange(len(self._mask), device=self._mask.device).repeat_interleave(rows_per_prompt)
        self._take(rows)
        return rows

    @property
    @override
    def can_evict(self) -> bool:
        return True

    @override
    def keep_prompts(self, prompts: Int64[Tensor, " kept"]) -> None:
        if isinstance(self._model, MergeableForward):
            self._model.keep_prompts(prompts, self._batch, None)
        self._take(rows_of(prompts, len(self._mask) // self._batch))
        self._batch = len(prompts)

    def _take(self, rows: PerRow) -> None:
        self._tokens = self._tokens.index_select(0, rows)
        self._mask = self._mask.index_select(0, rows)

    def _logits(self) -> Logits:
        output = self._model.forward(self._tokens, self._mask, count_positions(self._mask), cache=None)
        return last_logits(output)


# A session that starts with one row per prompt.
WidenableSession = RowSession | RecomputingSession


def start_hf_session(
    model: Forward, prompt: Prompt, capacity: int, *, cached: bool
) -> tuple[WidenableSession, Logits]:
    """A session with one row per prompt, and the logits after the prompts."""
    session = RowSession(model, prompt.mask, capacity) if cached else RecomputingSession(model, prompt.mask)
    # Padding is masked, but must be a valid id.
    return session, session.prefill(prompt.tokens.masked_fill(~prompt.mask, 0))
