"""The front door: every decoder over every model, with every processor."""

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import nn

from decodekit.decoders.base import Decoder, State
from decodekit.decoders.own_loop import Job, OwnLoop
from decodekit.inputs import IDENTITY, as_model, as_processor, vocabulary_of
from decodekit.loop import check_steps, run
from decodekit.model import Model
from decodekit.options import Options, Stop
from decodekit.output import Decoded
from decodekit.processors.base import LogitsProcessor
from decodekit.prompt import Prompt


def decode(  # noqa: PLR0913 - the library's front door; its options are keyword-only
    model: Model | nn.Module,
    prompts: Any,  # noqa: ANN401 - whatever Prompt.of reads
    decoder: Decoder[State] | OwnLoop,
    processor: LogitsProcessor | Sequence[LogitsProcessor] = IDENTITY,
    *,
    max_new_tokens: int,
    end_ids: int | Sequence[int] | None = None,
    pad_id: int | None = None,
    stop: Stop = (),
    trace: int | None = None,
    check_every: int = 1,
    on_step: Callable[[int], None] | None = None,
) -> Decoded:
    """Continues every prompt as the decoder decides.

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
            and may compute steps too many, which do not change the result.
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
        watched=False,
    )
    steps: Generator[Any, None, Decoded]
    if isinstance(decoder, OwnLoop):
        steps = run_own(model, prompts, decoder, processor, options)
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


@torch.no_grad()
def run_own(
    model: Model | nn.Module,
    prompts: Any,  # noqa: ANN401 - whatever Prompt.of reads
    algorithm: OwnLoop,
    processor: LogitsProcessor | Sequence[LogitsProcessor],
    options: Options,
) -> Generator[None, None, Decoded]:
    """An algorithm's own loop: pauses whenever it does, and at the end gives the result."""
    if options.trace is not None or options.check_every > 1:
        check_steps(algorithm)
    model = as_model(model)
    vocabulary = vocabulary_of(model)
    prompt = Prompt.of(prompts, vocabulary)
    job = Job(model, prompt, as_processor(processor), options, vocabulary)
    result = yield from algorithm.run(job)
    return result.with_context(prompt, vocabulary, None, options.criteria)
