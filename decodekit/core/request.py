"""The request of a call: the types of its options, and their checked values."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Required, TypedDict

from decodekit.core.prompt import Prompt
from decodekit.core.stopping_criterion import StoppingCriterion
from decodekit.core.vocabulary import Vocabulary

# The option `stop`: a criterion, a string that ends a text, or several of either.
Stop = StoppingCriterion | str | Sequence[StoppingCriterion | str]
BatchTokens = int | Literal["auto"] | None


class RunOptions(TypedDict, total=False):
    """Options of every call that decodes.

    Attributes:
        max_new_tokens: Limit of new tokens per hypothesis, at least 1. Required.
        end_ids: The ids that end a hypothesis; by default those of the model, `()` for none.
        pad_id: The id that fills tokens past the end; by default the pad id of the model, or an end id.
        stop: Conditions that finish a hypothesis early: a `StoppingCriterion`, a string, or several of
            either, any of which suffices. `finish_reason` names the one that fired.
    """

    max_new_tokens: Required[int]
    end_ids: int | Sequence[int] | None
    pad_id: int | None
    stop: Stop


class StreamOptions(RunOptions, total=False):
    """Options of `stream`.

    Attributes:
        trace: Number of the likeliest tokens to keep for every row and step, in the trace of the result.
    """

    trace: int | None


class EachOptions(RunOptions, total=False):
    """Options of `decode_each`.

    Attributes:
        check_every: Steps between two reads of the completion flags, at least 1. A larger number waits less
            for the device but may compute surplus steps, without effect on the result. On a GPU the flags may
            be some steps old.
        capture: True records a step once (decoder, processors, criteria and the pass of the model) and
            replays it: on a GPU as CUDA graphs, elsewhere as a list of operations. The results are the same.
            No prompt is evicted early. Parts that work on the host (grammars, processors with a model of
            their own) are refused.
        batch_tokens: Budget of a batch for a long list of prompts, in columns of all rows together,
            continuations included; None: one batch of all prompts. `"auto"` takes as many as fit the memory
            (at most 64 rows on a CPU; 2^15 columns for models other than `HFModel`). The longest come first.
            The next prompts take the free places once a quarter is free, or once all are free if the cache
            cannot merge (windows, recurrent layers). Running out of memory halves the budget.
        progress: True shows a bar of finished prompts.
    """

    check_every: int
    capture: bool
    batch_tokens: BatchTokens
    progress: bool


class DecodeOptions(StreamOptions, EachOptions, total=False):
    """Options of `decode`: those of `stream` and `decode_each`, and one more.

    Attributes:
        on_step: Called with the number of steps taken, after every step.
    """

    on_step: Callable[[int], None] | None


@dataclass(frozen=True, kw_only=True)
class DecodeRequest:
    """The prompts and options of a call, read and checked.

    Attributes:
        watched: True if the caller receives every step: then no prompt is evicted, no surplus step taken.
        started: Time of the call, by `time.monotonic`, in seconds.

    The other attributes are the prompts, the model's vocabulary, and `DecodeOptions`.
    """

    prompt: Prompt
    vocabulary: Vocabulary
    max_new_tokens: int
    end_ids: tuple[int, ...] | None = None
    pad_id: int | None = None
    criteria: tuple[StoppingCriterion, ...] = ()
    trace: int | None = None
    check_every: int = 1
    capture: bool = False
    watched: bool = False
    started: float = field(default_factory=time.monotonic)
