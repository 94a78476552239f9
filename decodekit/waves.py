"""A long list of prompts, in batches that fit the memory."""

import gc
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch

from decodekit.decoders.base import Decoder
from decodekit.decoders.own_loop import Job
from decodekit.errors import DecodekitError
from decodekit.loop import walk
from decodekit.models.footprint import is_out_of_memory, tokens_that_fit
from decodekit.models.hf import HFModel
from decodekit.output import Decoded
from decodekit.prompt import Share
from decodekit.reveal import NOTHING
from decodekit.splitting import whole_part

BatchTokens = int | Literal["auto"] | None
# For models whose memory is not known: toy models, and those of other libraries.
UNKNOWN = 2**15
# On a CPU a step of more rows takes longer by as much, and rows wait longer for each other: in the same
# measurement as `leaving.MOST` 11.1 s with 32 rows, 10.4 with 64, 11.0 with 128.
MOST_ROWS_ON_CPU = 64


class Part(NamedTuple):
    """Some prompts that are finished.

    Attributes:
        numbers: Which they are.
        result: Their result, without its context.
    """

    numbers: list[int]
    result: Decoded


class Budget(NamedTuple):
    """How large a batch may be.

    Attributes:
        tokens: Columns of all rows together, continuations included.
        rows: At most.
    """

    tokens: int
    rows: int


def in_waves(job: Job, decoder: Decoder[Any], batch_tokens: BatchTokens) -> Generator[list[Part], None, None]:
    """Decodes the prompts batch by batch, the longest first; yields after every step what is finished.

    A batch holds prompts of similar lengths, as many as its budget allows, and finished prompts leave it.
    Where memory is not enough, the budget is halved, and prompts that were not finished begin again.

    Args:
        job: All prompts, and what to do with them.
        decoder: The algorithm.
        batch_tokens: The budget; "auto": as much as fits; None: all prompts in one batch.

    Raises:
        DecodekitError: If the prompts cannot be taken apart.
        RuntimeError: If memory is not enough for a single prompt, as torch raises it.
    """
    check_apart(job, decoder, batch_tokens)
    columns = _columns(job)
    waiting = deque(sorted(range(len(columns)), key=columns.__getitem__, reverse=True))
    budget = _budget(job, decoder, batch_tokens, columns)
    while waiting:
        wave = _next_wave(waiting, columns, budget, decoder.rows_per_prompt)
        unfinished, is_too_large = set(wave), False
        steps = _walk(job, decoder, sorted(wave))
        while not is_too_large:
            try:
                parts = next(steps)
            except StopIteration:
                break
            except (MemoryError, RuntimeError) as error:
                if len(wave) == 1 or not is_out_of_memory(error):
                    raise
                is_too_large = True  # the error holds on to the batch's tensors until it is left behind
            else:
                unfinished -= {number for part in parts for number in part.numbers}
                yield parts
        if is_too_large:
            steps.close()
            _clear()
            rows = len(wave) * decoder.rows_per_prompt
            budget = Budget(max(rows * columns[wave[0]] // 2, 1), max(rows // 2, 1))
            waiting.extendleft(number for number in reversed(wave) if number in unfinished)


def check_budget(batch_tokens: object) -> None:
    """Raises unless it is what `batch_tokens` may be."""
    if batch_tokens in (None, "auto") or (type(batch_tokens) is int and batch_tokens >= 1):
        return
    raise DecodekitError(
        f"decode: batch_tokens must be an integer of at least 1, 'auto' or None, got {batch_tokens!r:.80}."
    )


def check_apart(job: Job, decoder: Decoder[Any], batch_tokens: BatchTokens) -> None:
    """Raises unless the prompts can be decoded in several batches with the same results."""
    if job.options.trace is not None:
        raise DecodekitError(
            "decode: a trace shows the steps of one batch that nobody leaves. Use it without batch_tokens "
            "and progress."
        )
    if batch_tokens is None:
        return
    seeds: Any = vars(decoder).get("seeds", ())
    whole = decoder if seeds is None else whole_part(decoder, job.processor, job.options.criteria)
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


def _walk(job: Job, decoder: Decoder[Any], numbers: list[int]) -> Generator[list[Part], None, None]:
    """Some of the prompts in one batch: after every step what has left, and at the end the rest."""
    share = Share(numbers, job.prompt)
    own = replace(job, prompt=share.prompt(trims_source=decoder.reveal == NOTHING))
    steps, seen = walk(own, decoder, share), 0
    while True:
        try:
            progress = next(steps)
        except StopIteration as finished:
            yield [Part(*part) for part in finished.value.parts[seen:]]
            return
        left = [Part(*part) for part in progress.left[seen:]]
        del progress  # it holds the batch's logits
        seen += len(left)
        yield left


def _columns(job: Job) -> list[int]:
    """How many columns every prompt takes with its continuation, what an encoder reads included."""
    lengths = job.prompt.mask.sum(-1)
    if job.prompt.source is not None:
        lengths = lengths + job.prompt.source.valid.sum(-1)
    return [int(length) + job.options.max_new_tokens for length in lengths.tolist()]


def _budget(job: Job, decoder: Decoder[Any], batch_tokens: BatchTokens, columns: Sequence[int]) -> Budget:
    every = len(columns) * decoder.rows_per_prompt
    if batch_tokens is None:
        return Budget(max(columns) * every, every)
    if batch_tokens != "auto":
        return Budget(batch_tokens, every)
    if not isinstance(job.model, HFModel):
        return Budget(UNKNOWN, every)
    rows = MOST_ROWS_ON_CPU if job.model.model.device.type == "cpu" else every
    return Budget(tokens_that_fit(job.model.model, max(columns)), rows)


def _next_wave(
    waiting: deque[int], columns: Sequence[int], budget: Budget, rows_per_prompt: int
) -> list[int]:
    """The next prompts, as many as fit the budget, and one at least."""
    longest = columns[waiting[0]]
    fits = min(budget.tokens // longest, budget.rows) // rows_per_prompt
    return [waiting.popleft() for _ in range(min(max(fits, 1), len(waiting)))]


def _clear() -> None:
    if torch.cuda.is_available():  # whose allocator holds on to what cycles hold on to
        gc.collect()
        torch.cuda.empty_cache()
