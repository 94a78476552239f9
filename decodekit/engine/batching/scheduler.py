"""A long list of prompts, in batches that fit the memory."""

import gc
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any, Literal, NamedTuple

import torch

from decodekit.core.batch_independence import whole_part
from decodekit.decoders.base import Decoder
from decodekit.decoders.custom_loop import DecodeRequest
from decodekit.engine.batching.continuous import BatchResult, ContinuousBatch
from decodekit.errors import DecodekitError
from decodekit.models.hf.memory_estimate import is_out_of_memory, tokens_that_fit
from decodekit.models.hf.model import HFModel

BatchTokens = int | Literal["auto"] | None
# For models whose memory is not known: toy models, and those of other libraries.
UNKNOWN = 2**15
# Others take the places of those that have left once this part of all places is free: each time costs a pass
# over the new prompts and a copy of the cache.
FREE = 0.25
# On a CPU a step of more rows takes longer by as much, and rows wait longer for each other: in the same
# measurement as `leaving.MOST` 11.1 s with 32 rows, 10.4 with 64, 11.0 with 128.
MOST_ROWS_ON_CPU = 64


class Budget(NamedTuple):
    """How large a batch may be.

    Attributes:
        tokens: Columns of all rows together, continuations included.
        rows: At most.
    """

    tokens: int
    rows: int


def in_waves(
    request: DecodeRequest, decoder: Decoder[Any], batch_tokens: BatchTokens
) -> Generator[list[BatchResult], None, None]:
    """Decodes the prompts, the longest first; yields after every step what is finished.

    As many are under way as the budget allows. Finished prompts leave, and once a good part of the places is
    free, others take them; where the model's cache cannot be joined, once all are over.
    Where memory is not enough, the budget is halved, and prompts that were not finished begin again.

    Args:
        job: All prompts, and what to do with them.
        decoder: The algorithm.
        batch_tokens: The budget; "auto": as much as fits; None: all prompts in one batch.

    Raises:
        DecodekitError: If the prompts cannot be taken apart.
        RuntimeError: If memory is not enough for a single prompt, as torch raises it.
    """
    check_apart(request, decoder, batch_tokens)
    columns = _columns(request)
    queue = Queue(columns, _budget(request, decoder, batch_tokens, columns), decoder.rows_per_prompt)
    running = ContinuousBatch(request, decoder)
    while queue.waiting or running.active:
        numbers, is_too_large = queue.next(running), False
        try:
            if numbers:
                running.begin(numbers)
            numbers = []  # they have begun
            running.step()
        except (MemoryError, RuntimeError) as error:
            if queue.is_one or not is_out_of_memory(error):
                raise
            is_too_large = True  # the error holds on to the batch's tensors until it is left behind
        yield running.take_finished()
        if is_too_large:
            lost = numbers or running.active
            if not numbers:  # else those that are under way go on
                running.forget()
            _clear()
            queue.halve(lost)
        if running.failure is not None and not running.active:
            raise running.failure


class Queue:
    """The prompts that wait, the longest first, and how many may be under way at once.

    Args:
        columns: What every prompt takes with its continuation.
        budget: For all that are under way.
        rows_per_prompt: Beams or samples of each.
    """

    def __init__(self, columns: Sequence[int], budget: Budget, rows_per_prompt: int) -> None:
        self.waiting = deque(sorted(range(len(columns)), key=columns.__getitem__, reverse=True))
        self._columns, self._budget, self._rows_per_prompt = columns, budget, rows_per_prompt
        self._fullest = budget

    def next(self, running: ContinuousBatch[Any]) -> list[int]:
        """The prompts that begin now: as many as fit, and one at least where nobody is under way."""
        if not self.waiting:
            return []
        active, columns = running.active, self._columns
        under_way = (columns[number] + steps for number, steps in zip(active, running.steps, strict=True))
        longest = max([columns[self.waiting[0]], *under_way])
        most = min(self._budget.tokens // longest, self._budget.rows) // self._rows_per_prompt
        free = most - len(active) if active else max(most, 1)
        enough = min(FREE * most, len(self.waiting)) if active else 1
        if free < max(enough, 1) or (active and not running.has_place):
            return []
        numbers = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        rows = (len(active) + len(numbers)) * self._rows_per_prompt
        self._fullest = Budget(rows * longest, rows)
        return numbers

    @property
    def is_one(self) -> bool:
        """Whether no more than one prompt was under way since others were last told to begin."""
        return self._fullest.rows == self._rows_per_prompt

    def halve(self, lost: Sequence[int]) -> None:
        """Takes back prompts that memory was not enough for; from now on half as many are under way."""
        tokens, rows = self._fullest
        self._budget = Budget(max(tokens // 2, 1), max(rows // 2, 1))
        self.waiting.extendleft(sorted(lost, key=self._columns.__getitem__))


def check_budget(batch_tokens: object) -> None:
    """Raises unless it is what `batch_tokens` may be."""
    if batch_tokens in (None, "auto") or (type(batch_tokens) is int and batch_tokens >= 1):
        return
    raise DecodekitError(
        f"decode: batch_tokens must be an integer of at least 1, 'auto' or None, got {batch_tokens!r:.80}."
    )


def check_apart(request: DecodeRequest, decoder: Decoder[Any], batch_tokens: BatchTokens) -> None:
    """Raises unless the prompts can be decoded in several batches with the same results."""
    if request.options.trace is not None:
        raise DecodekitError(
            "decode: a trace shows the steps of one batch that nobody leaves. Use it without batch_tokens "
            "and progress."
        )
    if batch_tokens is None:
        return
    seeds: Any = vars(decoder).get("seeds", ())
    whole = decoder if seeds is None else whole_part(decoder, request.processor, request.options.criteria)
    if whole is not None:
        advice = (
            "Pass seeds= instead of a generator"
            if {"generator", "seeds"} <= vars(whole).keys()
            else "If it treats every prompt by itself, say splits = True in its class"
        )
        raise DecodekitError(
            f"decode: with batch_tokens prompts are decoded in several batches, and {type(whole).__name__} "
            f"may need all of them in one. {advice}, or leave batch_tokens out."
        )


def _columns(request: DecodeRequest) -> list[int]:
    """How many columns every prompt takes with its continuation, what an encoder reads included."""
    lengths = request.prompt.mask.sum(-1)
    if request.prompt.source is not None:
        lengths = lengths + request.prompt.source.valid.sum(-1)
    return [int(length) + request.options.max_new_tokens for length in lengths.tolist()]


def _budget(
    request: DecodeRequest, decoder: Decoder[Any], batch_tokens: BatchTokens, columns: Sequence[int]
) -> Budget:
    every = len(columns) * decoder.rows_per_prompt
    if batch_tokens is None:
        return Budget(max(columns) * every, every)
    if batch_tokens != "auto":
        return Budget(batch_tokens, every)
    if not isinstance(request.model, HFModel):
        return Budget(UNKNOWN, every)
    rows = MOST_ROWS_ON_CPU if request.model.model.device.type == "cpu" else every
    return Budget(tokens_that_fit(request.model.model, max(columns)), rows)


def _clear() -> None:
    if torch.cuda.is_available():  # whose allocator holds on to what cycles hold on to
        gc.collect()
        torch.cuda.empty_cache()
