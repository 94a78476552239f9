"""The contract of logits processors, chains of them, and operations on scores that many share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History, RowOwners
from decodekit.core.pytrees import Memory
from decodekit.core.validation import CheckedOptions, set_fields, shown
from decodekit.errors import DecodekitError, DecodingError

# The two types that signatures of concrete processors repeat. A column of the history is 0-d.
Scores = Float32[Tensor, "rows vocab"]
Column = Int64[Tensor, ""]


@final
class PromptValues(tuple[float, ...]):
    """One number per prompt of the batch, in the order of the prompts."""

    __slots__ = ()


class LogitsProcessor(CheckedOptions, ABC):
    """Changes the scores of the next token, given the history and the processor's own memory.

    A pair of pure functions. The object stores its configuration and no state of a run. So one processor can
    serve many runs, and the loop can reorder each row's memory with its beam.

    Contract: does not write to its arguments; treats every row by itself; ignores columns where
    `history.valid` is False; allows no banned token, unless that is its purpose, as for `ForcedEOS`.

    Example:
        >>> class AtMostOnce(dk.LogitsProcessor):
        ...     def init(self, history): return torch.zeros(len(history.tokens), 50, dtype=torch.bool)
        ...     def apply(self, history, scores, seen):
        ...         last = history.tokens.index_select(1, (history.position - 1).view(1))
        ...         seen = seen.scatter(1, last, True)
        ...         return scores.masked_fill(seen, -torch.inf), seen
    """

    capturable: bool = True
    """False only for code that must run on the host, such as a grammar matcher."""

    argmax_invariant: bool = False
    """True if the likeliest token always stays the likeliest, so that greedy search may skip this."""

    batch_independent: bool = False
    """True if a row's result depends neither on the other rows nor on their number, and its prompt is read
    from `history`: then prompts can be decoded in several batches, and evicted once they are finished."""

    @abstractmethod
    def init(self, history: History) -> Memory:
        """Return the memory before the first step; `()` for none."""

    @abstractmethod
    def apply(
        self, history: History, scores: Float32[Tensor, "rows vocab"], memory: Memory
    ) -> tuple[Float32[Tensor, "rows vocab"], Memory]:
        """Return the new scores, and the memory for the next step."""

    def __call__(
        self,
        input_ids: Int64[Tensor, "rows length"],  # noqa: ARG002 - Hugging Face's signature
        scores: Float32[Tensor, "rows vocab"],  # noqa: ARG002
    ) -> Float32[Tensor, "rows vocab"]:
        """Hugging Face's calling convention, which has no memory.

        Raises:
            DecodekitError: Unless the processor has no memory.
        """
        raise DecodekitError(
            f"{type(self).__name__}: model.generate cannot keep the memory of this processor. "
            "Pass custom_generate=dk.compat.hf.custom_generate to generate as well."
        )

    @final
    def __or__(self, other: "LogitsProcessor") -> "Chain":
        """`a | b` is `Chain(a, b)`: first `a`, then `b`."""
        return Chain(self, other)


class StatelessProcessor(LogitsProcessor):
    """A processor without memory: one method, and it also runs inside Hugging Face.

    Example:
        >>> class Ban(dk.StatelessProcessor):
        ...     def process(self, history, scores):
        ...         return scores.index_fill(1, torch.tensor([0]), -torch.inf)
        >>> Ban()(torch.tensor([[5]]), torch.zeros(1, 3))
        tensor([[-inf, 0., 0.]])

    Hugging Face:
        `model.generate(logits_processor=[TopP(0.9)])` works as it is. Hugging Face passes no mask to a
        processor, so left padding counts as tokens.
    """

    @abstractmethod
    def process(
        self, history: History, scores: Float32[Tensor, "rows vocab"]
    ) -> Float32[Tensor, "rows vocab"]:
        """Return the new scores."""

    @final
    @override
    def init(self, history: History) -> Memory:
        check_per_prompt(self, history)
        return ()

    @final
    @override
    def apply(self, history: History, scores: Scores, memory: Memory) -> tuple[Scores, Memory]:
        return self.process(history, scores), memory

    @final
    @override
    def __call__(self, input_ids: Int64[Tensor, "rows length"], scores: Scores) -> Scores:
        """Hugging Face's calling convention: every column of `input_ids` counts.

        Hugging Face does not pass the number of prompts. With parameters per prompt, the number of values
        counts as the number of prompts, and must divide the number of rows.
        """
        length = torch.full((), input_ids.shape[1], device=input_ids.device)
        valid = torch.ones_like(input_ids, dtype=torch.bool)
        batches = [len(value) for value in vars(self).values() if isinstance(value, PromptValues)]
        rows_per_prompt = max(len(scores) // max(batches, default=len(scores)), 1)
        owners = RowOwners.of(len(input_ids), rows_per_prompt, input_ids.device)
        history = History(input_ids, valid, length, owners)
        check_per_prompt(self, history)
        return self.process(history, scores)


class NewTokenProcessor(LogitsProcessor):
    """A processor that distinguishes new tokens from the prompt's: its memory is the first new column."""

    batch_independent = True

    @abstractmethod
    def process(self, history: History, scores: Scores, first_new: Column) -> Scores:
        """Return the new scores; new tokens begin at column `first_new`."""

    @override
    def init(self, history: History) -> Column:
        check_per_prompt(self, history)
        return history.position.clone()

    @final
    @override
    def apply(self, history: History, scores: Scores, memory: Column) -> tuple[Scores, Column]:
        return self.process(history, scores, memory), memory


@final
@dataclass(frozen=True, init=False, repr=False)
class Chain(LogitsProcessor):
    """Applies processors from left to right; itself a processor, so chains nest.

    `Chain()` changes nothing. Nesting does not change the result.

    Args:
        processors: In the order in which they are applied.

    Raises:
        TypeError: If one of them is not a `LogitsProcessor`.

    Example:
        >>> Chain(dk.Temperature(0.7), dk.TopP(0.9))
        Chain(Temperature(temperature=0.7), TopP(p=0.9, min_tokens_to_keep=1))
        >>> dk.Temperature(0.7) | dk.TopP(0.9)
        Chain(Temperature(temperature=0.7), TopP(p=0.9, min_tokens_to_keep=1))

    Hugging Face:
        `LogitsProcessorList`, which has no memory to reorder with the beams.
    """

    processors: tuple[LogitsProcessor, ...]

    batch_independent = True

    def __init__(self, *processors: LogitsProcessor) -> None:
        for processor in processors:
            if not isinstance(processor, LogitsProcessor):
                raise TypeError(
                    f"Chain: every processor must be a decodekit.LogitsProcessor, got {shown(processor)}."
                )
        set_fields(
            self,
            processors=processors,
            capturable=all(processor.capturable for processor in processors),
            argmax_invariant=all(processor.argmax_invariant for processor in processors),
        )

    @override
    def init(self, history: History) -> Memory:
        return tuple(processor.init(history) for processor in self.processors)

    @override
    def apply(self, history: History, scores: Scores, memory: Memory) -> tuple[Scores, Memory]:
        new_memory = []
        for processor, memory_before in zip(self.processors, memory, strict=True):
            scores, memory_after = processor.apply(history, scores, memory_before)
            new_memory.append(memory_after)
        return scores, tuple(new_memory)

    @override
    def __call__(self, input_ids: Int64[Tensor, "rows length"], scores: Scores) -> Scores:
        for processor in self.processors:
            scores = processor(input_ids, scores)
        return scores

    @override
    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.processors))})"


def apply_processor(
    processor: LogitsProcessor, history: History, scores: Scores, memory: Memory
) -> tuple[Scores, Memory]:
    """Apply a processor, and check the shape of its scores.

    Raises:
        DecodekitError: If it does not return scores of the same shape.
    """
    processed, memory = processor.apply(history, scores, memory)
    if not isinstance(processed, Tensor) or processed.shape != scores.shape:
        returned = tuple(processed.shape) if isinstance(processed, Tensor) else processed
        raise DecodekitError(
            f"decode: processors must return scores of the shape they were given, {tuple(scores.shape)}, and "
            f"{shown(processor, 200)} returned {returned!r}."
        )
    return processed, memory


def check_per_prompt(processor: object, history: History) -> None:
    """Raise unless every parameter per prompt has one number for each prompt."""
    batch = history.batch
    for name, value in vars(processor).items():
        if isinstance(value, PromptValues) and len(value) != batch:
            raise DecodekitError(
                f"{type(processor).__name__}: {name} must be one number, or one for each prompt, got "
                f"{len(value)} for {batch} prompts."
            )


def nonfinite_error(prompt: int) -> DecodingError:
    """Return the error for a prompt with a score of NaN or plus infinity."""
    return DecodingError(
        f"decode: scores must be numbers below infinity, but for prompt {prompt} some were NaN or infinite. "
        "The cause is a processor or the model: half precision overflows, and eager attention cannot mask "
        "padding in float64; try float32."
    )


def nonfinite_rows(scores: Scores) -> Bool[Tensor, " rows"]:
    """Return True for every row in which some score is NaN or plus infinity."""
    return ~(scores.amax(-1) < torch.inf)


def put(
    scores: Scores,
    ids: Int64[Tensor, "rows columns"],
    where: Bool[Tensor, "rows columns"],
    values: Float32[Tensor, "rows columns"] | float,
) -> Scores:
    """Replace the scores of every row's `ids` in the columns selected by `where`.

    One pass over the vocabulary, for the copy. An id that occurs twice must have equal values.
    """
    rows, vocab = scores.shape
    # [rows vocab] -> [rows*vocab + 1]: other columns are written to a spare last place. So the shape does not
    # depend on the data, and the remaining places are contiguous.
    flat = scores.new_empty(rows * vocab + 1)
    flat[:-1].view(rows, vocab).copy_(scores)
    first = vocab * torch.arange(rows, device=scores.device)[:, None]
    places = torch.where(where & (ids < vocab), first + ids, rows * vocab).flatten()
    flat.scatter_(0, places, values.flatten() if isinstance(values, Tensor) else values)
    return flat[:-1].view(rows, vocab)


def check_largest(who: str, largest: int, vocab: int) -> None:
    """Raise unless the largest id is below the vocabulary size."""
    if largest >= vocab:
        raise DecodekitError(f"{who}: token ids must be below the vocabulary size {vocab}, got {largest}.")


def check_ids(who: str, scores: Scores, ids: tuple[int, ...]) -> Int64[Tensor, " ids"]:
    """Return ids on the device of the scores. Raises unless all are below the vocabulary size."""
    check_largest(who, max(ids, default=-1), scores.shape[-1])
    return device_ids(ids, scores.device)


def ban(who: str, scores: Scores, ids: tuple[int, ...], when: Tensor | None = None) -> Scores:
    """Ban `ids`; given `when`, 0-d or `[rows 1]`, only where it is True."""
    columns = check_ids(who, scores, ids)
    if when is None:
        return scores.index_fill(-1, columns, -torch.inf)
    # A `where` over the whole vocabulary would pass over it twice.
    return scores.index_copy(-1, columns, scores.index_select(-1, columns).masked_fill(when, -torch.inf))


def force(who: str, scores: Scores, ids: tuple[int, ...], when: Tensor) -> Scores:
    """Allow only `ids` where `when`, 0-d or `[rows 1]`, is True: 0 for them, minus infinity elsewhere."""
    columns = check_ids(who, scores, ids)
    forced = scores.index_select(-1, columns).masked_fill(when, 0.0)
    return torch.where(when, -torch.inf, scores).index_copy_(-1, columns, forced)


@lru_cache(maxsize=256)
def device_ids(ids: tuple[int, ...], device: torch.device) -> Int64[Tensor, " ids"]:
    """Return a cached copy on a device: a copy at every step would stall the device's stream."""
    with torch.inference_mode(mode=False):  # the copy may later be used where gradients are computed
        return torch.tensor(ids, dtype=torch.long, device=device)
