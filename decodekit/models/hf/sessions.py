"""Sessions of a transformers model: with one cache entry per row, and without a cache."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn
from typing_extensions import override

from decodekit.core.history import rows_of
from decodekit.core.prompt import Prompt
from decodekit.models.hf.cache import Cache
from decodekit.models.hf.forwards.forward import (
    Columns,
    Forward,
    MergeableForward,
    ShrinkingForward,
    count_positions,
    last_logits,
)
from decodekit.models.protocols import Ids, Logits, MergeableSession, PerRow, ShrinkingSession


class MergeState(NamedTuple):
    """The state of a session that another one needs to merge it."""

    model: Forward
    cache: Cache
    mask: Columns  # True for the columns so far that hold tokens
    empty: int  # leading columns without a token on any row
    remaining: int  # columns that may still be appended
    batch: int  # prompts


class RowSession(MergeableSession):
    """A session with one cache entry per row.

    Prompts and continuations have at most `capacity` columns. A given cache holds the first `cached_columns`.
    """

    def __init__(
        self,
        model: Forward,
        prompt_mask: Bool[Tensor, "batch length"],
        capacity: int,
        cache: Cache | None = None,
        cached_columns: int = 0,
    ) -> None:
        self._model = model
        self._cache = model.new_cache() if cache is None else cache
        self._cached_columns = cached_columns
        batch, self._column = prompt_mask.shape
        self._batch, self._has_merged = batch, False
        # The mask for the whole capacity: every column after the prompt will hold a token.
        mask = torch.ones((batch, capacity), dtype=torch.bool, device=prompt_mask.device)
        mask[:, : self._column] = prompt_mask
        self._mask = None if bool(prompt_mask.all()) and not model.wants_mask else mask
        self._positions = count_positions(mask)

    def prefill(self, tokens: Ids) -> Logits:
        """The logits after the prompts."""
        cached = self._cached_columns
        return self._logits(tokens[:, cached:], slice(cached, self._column))

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
        return self._cache.has_layers  # not if the model keeps its state in its own way

    @override
    def keep_prompts(self, prompts: Int64[Tensor, " kept"]) -> None:
        rows = rows_of(prompts, len(self._positions) // self._batch)
        self._take(rows)
        first = self._empty_columns() if self._has_merged else 0  # with the evicted rows gone
        self._positions = self._positions[:, first:]
        self._mask = None if self._mask is None else self._mask[:, first:]
        self._column -= first
        self._cache.select(rows, first)
        if isinstance(self._model, ShrinkingForward):
            self._model.keep_prompts(prompts, self._batch, self._cache)
        self._batch = len(prompts)

    @override
    def can_merge(self) -> bool:
        forward = self._model
        return self._cache.is_buffered and isinstance(forward, MergeableForward) and forward.can_merge()

    @override
    def merge(self, other: "RowSession") -> None:  # the newest columns of both become the same
        both = (self.merge_state, other.merge_state)
        if isinstance(self._model, MergeableForward):
            self._model.merge(both[1].model, (self._batch, both[1].batch), (self._cache, both[1].cache))
        columns = max(state.mask.shape[1] - state.empty for state in both)
        remaining = max(state.remaining for state in both)
        shifts = [columns - state.mask.shape[1] for state in both]
        self._cache.merge(both[1].cache, (shifts[0], shifts[1]), columns, columns + remaining)
        mask = torch.cat(
            [
                nn.functional.pad(state.mask, (shift, remaining))
                for state, shift in zip(both, shifts, strict=True)
            ]
        )
        mask[:, columns:] = True
        self._mask = None if bool(mask.all()) and not self._model.wants_mask else mask
        self._positions = count_positions(mask)
        self._column, self._batch, self._has_merged = columns, self._batch + both[1].batch, True

    @property
    def merge_state(self) -> MergeState:
        """The state that another session needs to merge this one."""
        remaining = self._positions.shape[1] - self._column
        return MergeState(
            self._model, self._cache, self._columns(), self._empty_columns(), remaining, self._batch
        )

    def _columns(self) -> Columns:
        """True for the columns so far that hold tokens."""
        if self._mask is None:
            return torch.ones_like(self._positions[:, : self._column], dtype=torch.bool)
        return self._mask[:, : self._column]

    def _empty_columns(self) -> int:
        """Number of leading columns without a token on any row. Reads the device."""
        return int(self._columns().any(0).int().argmax())

    def _logits(self, tokens: Ids, columns: slice) -> Logits:
        mask = None if self._mask is None else self._mask[:, : columns.stop]
        output = self._model.forward(tokens, mask, self._positions[:, columns], cache=self._cache)
        return last_logits(output)


class RecomputingSession(ShrinkingSession):
    """A session without a cache: every step reads the whole sequences again."""

    def __init__(self, model: Forward, prompt_mask: Bool[Tensor, "batch length"]) -> None:
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
        if isinstance(self._model, ShrinkingForward):
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


def start_session(
    model: Forward, prompt: Prompt, capacity: int, *, cached: bool
) -> tuple[WidenableSession, Logits]:
    """A session with one row per prompt, and the logits after the prompts."""
    session = RowSession(model, prompt.mask, capacity) if cached else RecomputingSession(model, prompt.mask)
    # Padding is never attended to, but must be an id that the model has.
    return session, session.prefill(prompt.tokens.masked_fill(~prompt.mask, 0))
