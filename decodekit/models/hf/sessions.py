"""Runs of a transformers model: with a cache, and for models that have none."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor, nn

from decodekit.core.history import rows_of
from decodekit.core.prompt import Prompt
from decodekit.models.hf.cache import Cache
from decodekit.models.hf.trie_cache.tree_mask import Mask

# Which columns of every row hold tokens.
Columns = Bool[Tensor, "rows length"]


@runtime_checkable
class Forward(Protocol):
    """What a session asks of a model: its forward pass, and an empty cache."""

    def forward(
        self,
        tokens: Int64[Tensor, "rows columns"],
        mask: Columns | Mask | None,
        position_ids: Int64[Tensor, "rows columns"],
        *,
        cache: Cache | None,
        keep: int = 1,
    ) -> Any:  # noqa: ANN401 - transformers' ModelOutput
        """The model's output, with the logits of the last `keep` columns; the cache has grown after."""

    def new_cache(self, *, whole: bool = False) -> Cache:
        """An empty cache, as this model wants it.

        Args:
            whole: Keeps every column, also those that a window has left behind.
        """

    @property
    def wants_mask(self) -> bool:
        """Whether to pass a mask even where there is no padding."""


@runtime_checkable
class Joinable(Protocol):
    """A forward pass that serves the prompts of several runs as it serves those of one."""

    def can_join(self) -> bool:
        """Whether the model goes on right after its cache was joined with another: a numerical test."""

    def join(self, other: Any, batches: tuple[int, int], caches: tuple[Cache, Cache]) -> None:  # noqa: ANN401
        """Takes in what another forward pass of its kind knows about its prompts.

        Args:
            other: The other one.
            batches: How many prompts each knows.
            caches: Of the sessions that they are driven by.
        """


@runtime_checkable
class PromptKeeper(Protocol):
    """A forward pass that knows something about every prompt."""

    def keep_prompts(self, prompts: Int64[Tensor, " kept"], batch: int, cache: Cache | None) -> None:
        """Forgets all prompts but some.

        Args:
            prompts: Which of those it knows now.
            batch: How many those are.
            cache: Of the session that it is driven by.
        """


class MergeState(NamedTuple):
    """What a run leaves to another that takes it in.

    Attributes:
        model: Its forward pass.
        cache: Its cache.
        seen: Which columns hold tokens so far.
        unseen: How many of the first hold none on any row.
        left: How many more there may be.
        batch: Prompts.
    """

    model: Forward
    cache: Cache
    seen: Columns
    unseen: int
    left: int
    batch: int


class CachedSession:
    """A run of a transformers model with one cache entry a row (the rows cache).

    Args:
        model: The model's forward pass.
        prompt_mask: Which columns of the prompts hold tokens.
        capacity: Columns that prompts and continuations take at most.
        cache: A cache that holds the first columns of the prompts; None: an empty one.
        known: How many columns it holds.
    """

    def __init__(
        self,
        model: Forward,
        prompt_mask: Bool[Tensor, "batch length"],
        capacity: int,
        cache: Cache | None = None,
        known: int = 0,
    ) -> None:
        self._model = model
        self._cache = model.new_cache() if cache is None else cache
        self._known = known
        batch, self._column = prompt_mask.shape
        self._batch, self._has_joined = batch, False
        # The mask of the whole run: after the prompt every column will hold a token.
        mask = torch.ones((batch, capacity), dtype=torch.bool, device=prompt_mask.device)
        mask[:, : self._column] = prompt_mask
        self._mask = None if bool(prompt_mask.all()) and not model.wants_mask else mask
        self._positions = positions(mask)

    def prefill(self, tokens: Int64[Tensor, "rows length"]) -> Float32[Tensor, "rows vocab"]:
        """The logits after the prompts."""
        return self._logits(tokens[:, self._known :], slice(self._known, self._column))

    def advance(
        self, tokens: Int64[Tensor, " rows"], source_rows: Int64[Tensor, " rows"] | None
    ) -> Float32[Tensor, "rows vocab"]:
        """The logits after one more token on every row."""
        if source_rows is not None:  # all rows of a prompt have the same mask and positions
            self._cache.reorder(source_rows)
        self._column += 1
        return self._logits(tokens[:, None], slice(self._column - 1, self._column))

    def cache_of(self, source_rows: Int64[Tensor, " rows"] | None) -> Any:  # noqa: ANN401 - transformers' Cache
        """Transformers' own cache, its rows put where the next token would find them."""
        if source_rows is not None:
            self._cache.reorder(source_rows)
        return self._cache.content

    def widen(self, rows_per_prompt: int) -> Int64[Tensor, " rows"]:
        """Makes `rows_per_prompt` rows of every prompt; returns the prompt of each row."""
        rows = self._repeat(rows_per_prompt)
        self._cache.widen(rows if rows_per_prompt > 1 else None, self._positions.shape[1])
        return rows

    def go_on(self, rows_per_prompt: int, shared: int) -> None:
        """Begins after a cache that has so many rows of every prompt already, alike in `shared` columns."""
        self._repeat(rows_per_prompt)
        self._cache.widen(None, self._positions.shape[1], shared=shared)

    def _repeat(self, rows_per_prompt: int) -> Int64[Tensor, " rows"]:
        rows = torch.arange(self._batch, device=self._positions.device).repeat_interleave(rows_per_prompt)
        if rows_per_prompt > 1:
            self._positions = self._positions.index_select(0, rows)
            self._mask = None if self._mask is None else self._mask.index_select(0, rows)
        return rows

    @property
    def shrinks(self) -> bool:
        """Whether prompts can leave; not where the model keeps its state in a way of its own."""
        return self._cache.has_layers

    def keep_prompts(self, prompts: Int64[Tensor, " kept"]) -> None:
        """Goes on with some prompts only."""
        rows = rows_of(prompts, len(self._positions) // self._batch)
        self._positions = self._positions.index_select(0, rows)
        self._mask = None if self._mask is None else self._mask.index_select(0, rows)
        first = self._unseen() if self._has_joined else 0
        self._positions = self._positions[:, first:]
        self._mask = None if self._mask is None else self._mask[:, first:]
        self._column -= first
        self._cache.select(rows, first)
        if isinstance(self._model, PromptKeeper):
            self._model.keep_prompts(prompts, self._batch, self._cache)
        self._batch = len(prompts)

    def can_join(self) -> bool:
        """Whether another run can be taken in."""
        return self._cache.is_buffered and isinstance(self._model, Joinable) and self._model.can_join()

    def join(self, other: "CachedSession") -> None:
        """Goes on with another run's prompts after its own; the newest columns of both are the same."""
        both = (self.standing, other.standing)
        if isinstance(self._model, Joinable):
            self._model.join(both[1].model, (self._batch, both[1].batch), (self._cache, both[1].cache))
        columns = max(run.seen.shape[1] - run.unseen for run in both)
        left = max(run.left for run in both)
        mine, theirs = shifts = [columns - run.seen.shape[1] for run in both]
        self._cache.merge(both[1].cache, (mine, theirs), columns, columns + left)
        mask = torch.cat(
            [nn.functional.pad(run.seen, (shift, left)) for run, shift in zip(both, shifts, strict=True)]
        )
        mask[:, columns:] = True
        self._mask = None if bool(mask.all()) and not self._model.wants_mask else mask
        self._positions = positions(mask)
        self._column, self._batch, self._has_joined = columns, self._batch + both[1].batch, True

    @property
    def standing(self) -> "MergeState":
        """What another run needs to take this one in."""
        seen, left = self._seen(), self._positions.shape[1] - self._column
        return MergeState(self._model, self._cache, seen, self._unseen(), left, self._batch)

    def _seen(self) -> Columns:
        """Which columns hold tokens so far."""
        if self._mask is None:
            return torch.ones_like(self._positions[:, : self._column], dtype=torch.bool)
        return self._mask[:, : self._column]

    def _unseen(self) -> int:
        """How many of the first columns hold tokens on no row. Reads the device."""
        return int(self._seen().any(0).int().argmax())

    def _logits(self, tokens: Int64[Tensor, "rows columns"], columns: slice) -> Float32[Tensor, "rows vocab"]:
        mask = None if self._mask is None else self._mask[:, : columns.stop]
        output = self._model.forward(tokens, mask, self._positions[:, columns], cache=self._cache)
        return last_logits(output)


class RecomputingSession:
    """A run of a model that has no cache: every step reads the whole text again."""

    def __init__(self, model: Forward, prompt_mask: Bool[Tensor, "batch length"], capacity: int) -> None:
        del capacity  # nothing is allocated ahead
        self._model = model
        self._mask = prompt_mask
        self._batch = len(prompt_mask)
        self._tokens = torch.empty_like(prompt_mask, dtype=torch.long)

    def prefill(self, tokens: Int64[Tensor, "rows length"]) -> Float32[Tensor, "rows vocab"]:
        """The logits after the prompts."""
        self._tokens = tokens
        return self._logits()

    def advance(
        self, tokens: Int64[Tensor, " rows"], source_rows: Int64[Tensor, " rows"] | None
    ) -> Float32[Tensor, "rows vocab"]:
        """The logits after one more token on every row."""
        if source_rows is not None:
            self._take(source_rows)
        self._tokens = torch.cat([self._tokens, tokens[:, None]], 1)
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], 1)
        return self._logits()

    def widen(self, rows_per_prompt: int) -> Int64[Tensor, " rows"]:
        """Makes `rows_per_prompt` rows of every prompt; returns the prompt of each row."""
        rows = torch.arange(len(self._mask), device=self._mask.device).repeat_interleave(rows_per_prompt)
        self._take(rows)
        return rows

    @property
    def shrinks(self) -> bool:
        """Prompts can leave."""
        return True

    def keep_prompts(self, prompts: Int64[Tensor, " kept"]) -> None:
        """Goes on with some prompts only."""
        if isinstance(self._model, PromptKeeper):
            self._model.keep_prompts(prompts, self._batch, None)
        self._take(rows_of(prompts, len(self._mask) // self._batch))
        self._batch = len(prompts)

    def _take(self, rows: Int64[Tensor, " rows"]) -> None:
        self._tokens = self._tokens.index_select(0, rows)
        self._mask = self._mask.index_select(0, rows)

    def _logits(self) -> Float32[Tensor, "rows vocab"]:
        output = self._model.forward(self._tokens, self._mask, positions(self._mask), cache=None)
        return last_logits(output)


def prefilled(
    model: Forward, prompt: Prompt, capacity: int, *, cached: bool
) -> tuple[CachedSession | RecomputingSession, Float32[Tensor, "rows vocab"]]:
    """A session with one row a prompt, and the logits after the prompts."""
    session = (CachedSession if cached else RecomputingSession)(model, prompt.mask, capacity)
    # What stands under the padding is never looked at, but must be an id the model has.
    return session, session.prefill(prompt.tokens.masked_fill(~prompt.mask, 0))


def as_given(mask: Columns | Mask) -> Tensor | dict[str, Tensor]:
    """A mask as transformers takes it: which columns hold tokens as numbers, others as they are."""
    return mask.long() if isinstance(mask, Tensor) and mask.dtype == torch.bool else mask


def positions(mask: Bool[Tensor, "rows length"]) -> Int64[Tensor, "rows length"]:
    """Each column's position in its text, counted without padding."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def last_logits(output: Any) -> Float32[Tensor, "rows vocab"]:  # noqa: ANN401 - transformers' ModelOutput
    """The last column's logits, as a tensor of their own: made outside inference mode, free to be used."""
    logits: Tensor = output.logits[:, -1].to(torch.float32, copy=True).contiguous()
    return logits
