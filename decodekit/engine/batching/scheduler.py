"""Scheduling of a long list of prompts: batches that fit the memory, filled again while they shrink."""

import gc
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from decodekit.core.pytrees import whole_part
from decodekit.core.request import BatchTokens, DecodeRequest
from decodekit.decoders.base import Decoder
from decodekit.engine.loop import ContinuousBatch
from decodekit.errors import DecodekitError, is_out_of_memory
from decodekit.models.hf.memory_estimate import tokens_that_fit
from decodekit.models.hf.model import HFModel
from decodekit.models.protocols import Model
from decodekit.processors.base import LogitsProcessor

# For models of unknown memory: toy models, and models of other libraries.
UNKNOWN = 2**15
# Prompts are admitted once this part of all places is free: each admission costs a pass over the new prompts
# and a copy of the cache.
FREE = 0.25
# On a CPU the time of a step grows with the rows, and rows wait longer for each other. The measurement of
# `eviction.MOST` took 11.1 s with 32 rows, 10.4 with 64, 11.0 with 128.
MOST_ROWS_ON_CPU = 64


class Budget(NamedTuple):
    """The largest batch allowed.

    Attributes:
        tokens: Columns of all rows together, continuations included.
        rows: Number of rows.
    """

    tokens: int
    rows: int


class PromptQueue:
    """Prompts that wait, the longest first, and the number that may be active at once.

    If memory runs out, the budget is halved, and unfinished prompts start again.

    Args:
        columns: Columns of every prompt, its continuation included.
        budget: Budget for all active prompts.
        rows_per_prompt: Beams or samples of each prompt.
    """

    def __init__(self, columns: Sequence[int], budget: Budget, rows_per_prompt: int) -> None:
        self._queue = deque(sorted(range(len(columns)), key=columns.__getitem__, reverse=True))
        self._columns, self._budget, self._rows_per_prompt = columns, budget, rows_per_prompt
        self._fullest = budget
        self._must_clear = False

    @property
    def waiting(self) -> bool:
        """True while prompts wait."""
        return bool(self._queue)

    def next(self, batch: ContinuousBatch[Any]) -> list[int]:
        """The prompts to admit now: as many as fit, and at least one if no prompt is active."""
        if self._must_clear and torch.cuda.is_available():  # to free reference cycles
            gc.collect()
            torch.cuda.empty_cache()
        self._must_clear = False
        if not self._queue:
            return []
        active, columns = batch.active, self._columns
        used = (columns[prompt] + steps for prompt, steps in zip(active, batch.steps, strict=True))
        longest = max([columns[self._queue[0]], *used])
        most = min(self._budget.tokens // longest, self._budget.rows) // self._rows_per_prompt
        free = most - len(active) if active else max(most, 1)
        enough = min(FREE * most, len(self._queue)) if active else 1
        if free < max(enough, 1) or (active and not batch.can_admit):
            return []
        prompts = [self._queue.popleft() for _ in range(min(free, len(self._queue)))]
        rows = (len(active) + len(prompts)) * self._rows_per_prompt
        self._fullest = Budget(rows * longest, rows)
        return prompts

    @contextmanager
    def recovery(self, batch: ContinuousBatch[Any]) -> Iterator[None]:
        """If memory runs out, halve the budget and requeue prompts; raise if a single prompt does not fit."""
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if self._fullest.rows == self._rows_per_prompt or not is_out_of_memory(error):
                raise
            prompts = batch.starting or batch.active
            if not batch.starting:  # otherwise the active prompts go on
                batch.clear()
            batch.starting = []
            self._must_clear = True  # the error references tensors until the handler ends
            self._halve(prompts)

    def _halve(self, prompts: Sequence[int]) -> None:
        tokens, rows = self._fullest
        self._budget = Budget(max(tokens // 2, 1), max(rows // 2, 1))
        self._queue.extendleft(sorted(prompts, key=self._columns.__getitem__))


def queue_of(
    model: Model,
    decoder: Decoder[Any, Any],
    processor: LogitsProcessor,
    request: DecodeRequest,
    tokens: BatchTokens,
) -> PromptQueue:
    """The prompts of a request, with their budget.

    Raises:
        DecodekitError: If the prompts cannot be decoded in several batches with the same results.
    """
    _check_independence(decoder, processor, request, tokens)
    lengths = request.prompt.mask.sum(-1)
    if request.prompt.source is not None:
        lengths = lengths + request.prompt.source.valid.sum(-1)
    columns = [int(length) + request.max_new_tokens for length in lengths.tolist()]
    rows = len(columns) * decoder.rows_per_prompt
    budget = Budget(max(columns) * rows if tokens is None else UNKNOWN, rows)
    if isinstance(tokens, int):
        budget = Budget(tokens, rows)
    elif tokens == "auto" and isinstance(model, HFModel):
        most_rows = MOST_ROWS_ON_CPU if model.model.device.type == "cpu" else rows
        budget = Budget(tokens_that_fit(model.model, max(columns)), most_rows)
    return PromptQueue(columns, budget, decoder.rows_per_prompt)


def _check_independence(
    decoder: Decoder[Any, Any], processor: LogitsProcessor, request: DecodeRequest, tokens: BatchTokens
) -> None:
    if request.trace is not None:
        raise DecodekitError(
            "decode: a trace shows the steps of one batch without evictions. Use it without "
            "batch_tokens and progress."
        )
    if tokens is None:
        return
    seeds: Any = vars(decoder).get("seeds", ())
    whole = decoder if seeds is None else whole_part(decoder, processor, request.criteria)
    if whole is not None:
        advice = (
            "Pass seeds= instead of a generator"
            if {"generator", "seeds"} <= vars(whole).keys()
            else "If it treats every prompt on its own, set batch_independent = True in its class"
        )
        raise DecodekitError(
            f"decode: batch_tokens splits the prompts into several batches, but {type(whole).__name__} "
            f"may need all prompts in one. {advice}, or leave batch_tokens out."
        )
