"""The front door: every decoder over every model, with every processor."""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from decodekit.core.prompt import Prompt, PromptSubset
from decodekit.core.request import Options, Stop
from decodekit.core.result import Decoded
from decodekit.decoders.base import Decoder, State
from decodekit.decoders.custom_loop import CustomLoop, DecodeRequest
from decodekit.engine.batching.merging import alone, join
from decodekit.engine.batching.scheduler import BatchTokens, check_budget, in_waves
from decodekit.engine.inputs import IDENTITY, as_model, as_processor, vocabulary_of
from decodekit.engine.loop import run, step_by_step
from decodekit.engine.progress_bar import counted
from decodekit.models.protocols import Model
from decodekit.processors.base import LogitsProcessor


def decode(  # noqa: PLR0913 - the library's front door; its options are keyword-only
    model: Model | nn.Module,
    prompts: Any,  # noqa: ANN401 - whatever Prompt.of reads
    decoder: Decoder[State] | CustomLoop,
    processor: LogitsProcessor | Sequence[LogitsProcessor] = IDENTITY,
    *,
    max_new_tokens: int,
    end_ids: int | Sequence[int] | None = None,
    pad_id: int | None = None,
    stop: Stop = (),
    trace: int | None = None,
    check_every: int = 1,
    capture: bool = False,
    batch_tokens: BatchTokens = None,
    progress: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Decoded:
    """Continues every prompt as the decoder decides.

    Prompts that are finished leave the batch, and the others go on without them, where model, decoder and
    processors allow it: the results are the same.

    Args:
        model: A `Model`, or a transformers model, which is wrapped in `HFModel`.
        prompts: A string or strings, ids or lists of ids of any lengths, a tensor with its mask: see
            `Prompt.of`. A batch gives what each prompt alone gives.
        decoder: The algorithm.
        processor: What changes the scores before it; one, or a sequence to be applied in order.
        max_new_tokens: New tokens at most, at least 1.
        end_ids: The ids that end a text; None: the model's own. `()` for none.
        pad_id: What fills `Decoded.tokens` past the end; None: the model's own, or an end id.
        stop: What else finishes a hypothesis: a `StoppingCriterion`, a string, or several of either, of
            which any will do. `finish_reason` says which it was.
        trace: How many of the likeliest tokens to keep of every row and step, in `Decoded.trace`.
        check_every: Asks the device every so many steps whether all is done. More than 1 waits less
            and may compute steps too many, which do not change the result. A GPU is never waited for: its
            answer may be a few steps old.
        capture: Records a step once (decoder, processors, criteria and the model's pass) and replays it: on a
            GPU as CUDA graphs, elsewhere as a list of operations. The results are the same. Nobody leaves the
            batch. What works on the host (grammars, processors with a model of their own) is refused.
        batch_tokens: Of a long list of prompts, so many columns of all rows together are under way at once,
            continuations included, the longest first; `"auto"`: as many as fit the memory. Once a quarter of
            the places is free, the next prompts take them; where the model's cache cannot be joined (windows,
            recurrent layers), once all are. Where memory was not enough, half as many. None: all prompts in
            one batch.
        progress: Shows how many prompts are finished.
        on_step: Called with the number of steps taken, after every step.

    Returns:
        The continuations and what they are worth.

    Raises:
        DecodekitError: If the prompts, the limits or the model do not allow a right answer; the
            message says which. `PromptError`, `ModelError` and `DecodingError` are its kinds.

    Example:
        >>> prompts = ["Once upon a time there was", "she was as beautiful as the"]
        >>> dk.decode(dk.load(), prompts, dk.Greedy(), max_new_tokens=1).texts
        [[' a'], [' sun']]

    Hugging Face:
        `model.generate(...)`; the equivalence page says what equals what.
    """
    options = Options(
        max_new_tokens=max_new_tokens,
        end_ids=end_ids,
        pad_id=pad_id,
        stop=stop,
        trace=trace,
        check_every=check_every,
        capture=capture,
        watched=False,
    )
    check_budget(batch_tokens)
    steps: Generator[Any, None, Decoded]
    if batch_tokens is not None or progress:
        request = _request(model, prompts, processor, options)
        steps = _run_in_waves(request, step_by_step(decoder), batch_tokens, progress=progress)
    elif isinstance(decoder, CustomLoop):
        steps = run_custom_loop(model, prompts, decoder, processor, options)
    else:
        steps = run(model, prompts, decoder, processor, options)
    number = 0
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            result: Decoded = finished.value
            return result
        number += 1
        if on_step is not None:
            on_step(number)


def decode_each(  # noqa: PLR0913 - decode's arguments
    model: Model | nn.Module,
    prompts: Any,  # noqa: ANN401 - whatever Prompt.of reads
    decoder: Decoder[State],
    processor: LogitsProcessor | Sequence[LogitsProcessor] = IDENTITY,
    *,
    max_new_tokens: int,
    end_ids: int | Sequence[int] | None = None,
    pad_id: int | None = None,
    stop: Stop = (),
    check_every: int = 1,
    capture: bool = False,
    batch_tokens: BatchTokens = "auto",
    progress: bool = False,
) -> Iterator[tuple[int, Decoded]]:
    """Continues every prompt as `decode` does, and hands out each result as soon as prompts leave the batch.

    Args:
        model: As in `decode`.
        prompts: As in `decode`; any number of them.
        decoder: As in `decode`, one that goes step by step.
        processor: As in `decode`.
        max_new_tokens: As in `decode`.
        end_ids: As in `decode`.
        pad_id: As in `decode`.
        stop: As in `decode`.
        check_every: As in `decode`.
        capture: As in `decode`.
        batch_tokens: As in `decode`.
        progress: As in `decode`.

    Yields:
        The number of a prompt and its result, each once, in no particular order: what `decode` returns for it
        alone, but that `parents` are counted through the rows of all prompts.

    Raises:
        DecodekitError: As `decode`, at the first result.

    Example:
        >>> prompts = ["Once upon a time there was", "she was as beautiful as the"]
        >>> results = dk.decode_each(dk.load(), prompts, dk.Greedy(), max_new_tokens=1)
        >>> sorted((number, result.texts[0][0]) for number, result in results)
        [(0, ' a'), (1, ' sun')]

    Hugging Face:
        `pipeline("text-generation")` over a dataset, in batches of a fixed number of prompts.
    """
    options = Options(
        max_new_tokens=max_new_tokens,
        end_ids=end_ids,
        pad_id=pad_id,
        stop=stop,
        check_every=check_every,
        capture=capture,
        watched=False,
    )
    check_budget(batch_tokens)
    request = _request(model, prompts, processor, options)
    return _each(request, step_by_step(decoder), batch_tokens, progress=progress)


def _each(
    request: DecodeRequest, decoder: Decoder[Any], batch_tokens: BatchTokens, *, progress: bool
) -> Iterator[tuple[int, Decoded]]:
    with counted(len(request.prompt.tokens), shown=progress) as count:
        for parts in in_waves(request, decoder, batch_tokens):
            for numbers, result in parts:
                count(len(numbers))
                for place, number in enumerate(numbers):
                    prompt = PromptSubset([number], request.prompt).prompt()
                    one = alone(result, place)
                    yield number, one.with_context(prompt, request.vocabulary, None, request.options.criteria)


def _run_in_waves(
    request: DecodeRequest, decoder: Decoder[Any], batch_tokens: BatchTokens, *, progress: bool
) -> Generator[None, None, Decoded]:
    """All prompts, batch by batch: pauses after every step, and at the end gives the result."""
    every: list[tuple[list[int], Decoded]] = []
    with counted(len(request.prompt.tokens), shown=progress) as count:
        for parts in in_waves(request, decoder, batch_tokens):
            every += parts
            count(sum(len(part.numbers) for part in parts))
            yield
    return join(every).with_context(request.prompt, request.vocabulary, None, request.options.criteria)


def _request(
    model: Model | nn.Module,
    prompts: Any,  # noqa: ANN401
    processor: LogitsProcessor | Sequence[LogitsProcessor],
    options: Options,
) -> DecodeRequest:
    model = as_model(model)
    vocabulary = vocabulary_of(model)
    return DecodeRequest(model, Prompt.of(prompts, vocabulary), as_processor(processor), options, vocabulary)


@torch.no_grad()
def run_custom_loop(
    model: Model | nn.Module,
    prompts: Any,  # noqa: ANN401 - whatever Prompt.of reads
    algorithm: CustomLoop,
    processor: LogitsProcessor | Sequence[LogitsProcessor],
    options: Options,
) -> Generator[None, None, Decoded]:
    """An algorithm's own loop: pauses whenever it does, and at the end gives the result."""
    if options.trace is not None or options.check_every > 1 or options.capture:
        step_by_step(algorithm)
    request = _request(model, prompts, processor, options)
    result = yield from algorithm.run(request)
    return result.with_context(request.prompt, request.vocabulary, None, options.criteria)
