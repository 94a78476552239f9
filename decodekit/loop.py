"""The one loop: every decoder over every model, with every processor."""

from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, NamedTuple

import torch
from jaxtyping import Bool, Float32
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from decodekit import trace as tracing
from decodekit.decoders.base import Decoder, Selection, State
from decodekit.decoders.own_loop import Job, OwnLoop
from decodekit.errors import DecodekitError
from decodekit.limits import Limits, Stopping
from decodekit.memory import Memory, reorder_memory
from decodekit.model import DescribedModel, Model, RevealingModel, RevealingSession, Session
from decodekit.models.hf import HFModel
from decodekit.options import Options, Stop
from decodekit.output import Decoded
from decodekit.processors.applying import apply_processor, broken_rows, not_numbers
from decodekit.processors.base import LogitsProcessor
from decodekit.processors.chain import Chain
from decodekit.prompt import Prompt
from decodekit.vocabulary import Vocabulary

IDENTITY = Chain()


class Progress(NamedTuple, Generic[State]):
    """A run after a step, for those who look on.

    Attributes:
        number: Steps taken.
        state: The decoder's, after the step.
        logits: The model's, before the step.
        scores: After the processors.
        selection: What the step decided.
        limits: Where hypotheses end.
        prompt: The prompts.
        vocabulary: What the model's ids mean.
        session: The model's run.
    """

    number: int
    state: State
    logits: Float32[Tensor, "rows vocab"]
    scores: Float32[Tensor, "rows vocab"]
    selection: Selection
    limits: Limits
    prompt: Prompt
    vocabulary: Vocabulary
    session: Session


@torch.no_grad()
def run(
    model: Model | nn.Module,
    prompts: Any,  # noqa: ANN401 - whatever Prompt.of reads
    decoder: Decoder[State],
    processor: LogitsProcessor | Sequence[LogitsProcessor],
    options: Options,
) -> Generator[Progress[State], None, Decoded]:
    """The loop itself: a `Progress` after every step, and at the end the result."""
    if isinstance(decoder, OwnLoop):
        raise _cannot_be_watched(decoder)
    if not isinstance(decoder, Decoder):
        raise TypeError(
            f"decode: decoder must be a Decoder such as dk.Greedy() or dk.BeamSearch(5), got {decoder!r:.80}."
        )
    model = as_model(model)
    chain = as_processor(processor)
    vocabulary = vocabulary_of(model)
    prompt = Prompt.of(prompts, vocabulary)
    length, rows = prompt.tokens.shape[1], decoder.rows_per_prompt
    capacity, last = length + options.max_new_tokens, options.max_new_tokens + decoder.delay
    session, logits = start(model, prompt, decoder, capacity)
    limits = options.limits(vocabulary, length, logits.shape[-1])
    history = prompt.to(logits.device).history(capacity, rows)
    state, memory = decoder.init(history, limits), chain.init(history)
    _check_asks(decoder, state, limits)
    broken = torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
    steps: list[tracing.Step] = []

    for number in range(1, last + 1):
        state = look(decoder, session, state)
        state, selection, memory, scores, broken = step(decoder, chain, logits, state, memory, broken)
        if options.trace is not None:
            steps.append(tracing.record(logits, scores, *selection, options.trace))
        yield Progress(number, state, logits, scores, selection, limits, prompt, vocabulary, session)
        is_asked = number % options.check_every == 0
        if number == last or (is_asked and bool(state.done | broken.any())):
            break
        logits = session.advance(selection.tokens, selection.source_rows)

    if broken.any():
        raise not_numbers(int(broken.int().argmax()) // rows)
    result = decoder.finalize(state)
    traced = None
    if options.trace is not None:
        traced = tracing.Trace(prompt, rows, vocabulary, limits.end_ids, steps, result.lengths)
    return result.with_context(prompt, vocabulary, traced, limits.criteria)


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
        raise _cannot_be_watched(algorithm)
    model = as_model(model)
    vocabulary = vocabulary_of(model)
    prompt = Prompt.of(prompts, vocabulary)
    job = Job(model, prompt, as_processor(processor), options, vocabulary)
    result = yield from algorithm.run(job)
    return result.with_context(prompt, vocabulary, None, options.criteria)


def start(
    model: Model, prompt: Prompt, decoder: Decoder[State], capacity: int
) -> tuple[Session, Float32[Tensor, "rows vocab"]]:
    """The model's session for a decoder, which shows what the decoder needs to see."""
    rows = decoder.rows_per_prompt
    if not decoder.reveal:
        return model.start(prompt, rows_per_prompt=rows, capacity=capacity)
    if not isinstance(model, RevealingModel):
        raise DecodekitError(
            f"decode: {type(decoder).__name__} needs a model that shows {decoder.reveal}, and {model!r:.80} "
            "has no start_revealing(). Use dk.HFModel, or write that method: see decodekit.RevealingModel."
        )
    return model.start_revealing(prompt, rows_per_prompt=rows, capacity=capacity, reveal=decoder.reveal)


def look(decoder: Decoder[State], session: Session, state: State) -> State:
    """The decoder's state after it has seen what the model shows, if it asks for that."""
    if decoder.reveal and isinstance(session, RevealingSession):
        return decoder.look(session.revealed, state)
    return state


def vocabulary_of(model: Model) -> Vocabulary:
    """What the model's ids mean, as far as it knows."""
    return model.vocabulary if isinstance(model, DescribedModel) else Vocabulary()


def step(
    decoder: Decoder[State],
    chain: LogitsProcessor,
    logits: Float32[Tensor, "rows vocab"],
    state: State,
    memory: Memory,
    broken: Bool[Tensor, " rows"],
) -> tuple[State, Selection, Memory, Float32[Tensor, "rows vocab"], Bool[Tensor, " rows"]]:
    """One step, from logits to the next tokens; nothing in it reads the device.

    Returns:
        The state, the selection, every row's memory in its new place, the processed scores, and the
        rows on which some score so far was not a number (or infinite).
    """
    prepared = decoder.prepare(logits)
    state = decoder.observe(prepared, state)
    prepared = decoder.adjust(prepared, state)
    scores, memory = apply_processor(chain, state.history, prepared, memory)
    broken = broken | broken_rows(scores)
    state, selection = decoder.step(scores, state)
    if selection.source_rows is not None:
        memory = reorder_memory(memory, selection.source_rows)
    return state, selection, memory, scores, broken


def as_model(model: Model | nn.Module) -> Model:
    """The model itself, or a transformers model wrapped in `HFModel`."""
    if isinstance(model, Model) and not isinstance(model, type):
        return model
    if isinstance(model, nn.Module):
        return HFModel(model)
    raise DecodekitError(
        f"decode: model must be a Model or a transformers model, got {model!r:.80}. "
        "Use dk.load(name) or dk.HFModel(model, tokenizer)."
    )


def as_processor(processor: LogitsProcessor | Sequence[LogitsProcessor]) -> LogitsProcessor:
    """The processor itself, or a sequence of them as a chain."""
    if isinstance(processor, LogitsProcessor):
        return processor
    if not isinstance(processor, Sequence):
        raise TypeError(
            f"decode: processor must be a LogitsProcessor or a sequence of them, got {processor!r:.80}."
        )
    return Chain(*processor)


def _check_asks(decoder: Decoder[State], state: State, limits: Limits) -> None:
    """Raises if there are stopping criteria and the decoder does not ask them."""
    leaves = tree_flatten(state, is_leaf=lambda part: isinstance(part, Stopping))[0]
    if limits.criteria and not any(isinstance(leaf, Stopping) for leaf in leaves):
        raise DecodekitError(
            f"decode: {type(decoder).__name__} must ask the stopping criteria, and its state holds nothing "
            "of theirs, so stop= would be ignored. Keep limits.start(history) in the state and call "
            "limits.finish at every step, or use RowState."
        )


def _cannot_be_watched(algorithm: OwnLoop) -> TypeError:
    return TypeError(
        f"decode: {type(algorithm).__name__} has a loop of its own, which cannot be watched step by step: "
        "no trace, no check_every, no streaming, no generate(). Use dk.decode(...) without them."
    )
