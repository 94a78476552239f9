"""The one loop: every decoder over every model, with every processor."""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from decodekit import trace as tracing
from decodekit.capture import CapturedStep, start_captured
from decodekit.decoders.base import Decoder, Selection, State
from decodekit.decoders.own_loop import Job, OwnLoop
from decodekit.errors import DecodekitError
from decodekit.inputs import as_model, as_processor, vocabulary_of
from decodekit.joining import join
from decodekit.leaving import Attendance, Present, can_leave
from decodekit.limits import Limits, Stopping
from decodekit.model import Model, RevealingModel, RevealingSession, Session
from decodekit.options import Options
from decodekit.output import Decoded
from decodekit.processors.applying import not_numbers
from decodekit.processors.base import LogitsProcessor
from decodekit.prompt import Prompt, Share
from decodekit.stepping import Step, step
from decodekit.vocabulary import Vocabulary


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
        left: The results of prompts that have left, as `Walked` has them; it grows.
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
    left: list[tuple[list[int], Decoded]]


class Walked(NamedTuple):
    """What came of a walk.

    Attributes:
        parts: The results of some prompts each, without their context, and which prompts they are.
        limits: Where hypotheses ended.
        steps: Every step, if they were asked for.
    """

    parts: list[tuple[list[int], Decoded]]
    limits: Limits
    steps: list[tracing.Step]


def run(
    model: Model | nn.Module,
    prompts: Any,  # noqa: ANN401 - whatever Prompt.of reads
    decoder: Decoder[State],
    processor: LogitsProcessor | Sequence[LogitsProcessor],
    options: Options,
) -> Generator[Progress[State], None, Decoded]:
    """A decoder over some prompts: a `Progress` after every step, and at the end the result."""
    step_by_step(decoder)
    model = as_model(model)
    vocabulary = vocabulary_of(model)
    job = Job(model, Prompt.of(prompts, vocabulary), as_processor(processor), options, vocabulary)
    walked = yield from walk(job, decoder)
    result, traced = join(walked.parts), None
    if options.trace is not None:
        ends, rows = walked.limits.end_ids, decoder.rows_per_prompt
        traced = tracing.Trace(job.prompt, rows, vocabulary, ends, walked.steps, result.lengths)
    return result.with_context(job.prompt, vocabulary, traced, options.criteria)


@torch.no_grad()
def walk(
    job: Job, decoder: Decoder[State], share: Share | None = None
) -> Generator[Progress[State], None, Walked]:
    """The loop itself.

    Args:
        job: What to continue, and how.
        decoder: The algorithm.
        share: Whose these prompts are, where they are a part of those that `decode` was given.
    """
    prompt, options, chain = job.prompt, job.options, job.processor
    length, rows = prompt.tokens.shape[1], decoder.rows_per_prompt
    capacity, last = length + options.max_new_tokens, options.max_new_tokens + decoder.delay
    starting = start_captured if options.capture else start
    session, logits = starting(job.model, prompt, decoder, capacity)
    limits = job.limits(logits.shape[-1])
    history = prompt.to(logits.device).history(capacity, rows)
    history = history if share is None else share.of_run(history)
    state, memory = decoder.init(history, limits), chain.init(history)
    _check_asks(decoder, state, limits)
    broken = torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
    steps: list[tracing.Step] = []
    take = _stepper(decoder, chain, limits, options)
    free = options.free and not options.capture  # a recorded step has a batch of fixed size
    may_leave = free and can_leave(session, (decoder, chain, options.criteria), (state, memory))
    attendance = Attendance(decoder, history, may_leave=may_leave, waits=not options.free)

    for number in range(1, last + 1):
        state = look(decoder, session, state)
        state, selection, memory, scores, broken = take(logits, state, memory, broken)
        if options.trace is not None:
            steps.append(tracing.record(logits, scores, *selection, options.trace))
        left = attendance.left
        yield Progress(
            number, state, logits, scores, selection, limits, prompt, job.vocabulary, session, left
        )
        if number == last:
            break
        if number % options.check_every == 0:
            attendance.ask(state, broken)
        if attendance.is_over():
            break
        if attendance.leavers():
            present = Present(state, memory, selection, broken)
            state, memory, selection, broken = attendance.leave(present, session)
        logits = session.advance(selection.tokens, selection.source_rows)

    if broken.any():
        raise not_numbers(state.history.prompt(int(broken.int().argmax()) // rows))
    return Walked(attendance.results(state), limits, steps)


def _stepper(
    decoder: Decoder[Any], chain: LogitsProcessor, limits: Limits, options: Options
) -> Callable[..., Step]:
    """What takes a step from logits, state, memory and broken rows."""
    return CapturedStep(decoder, chain, limits.criteria) if options.capture else partial(step, decoder, chain)


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


def _check_asks(decoder: Decoder[State], state: State, limits: Limits) -> None:
    """Raises if there are stopping criteria and the decoder does not ask them."""
    leaves = tree_flatten(state, is_leaf=lambda part: isinstance(part, Stopping))[0]
    if limits.criteria and not any(isinstance(leaf, Stopping) for leaf in leaves):
        raise DecodekitError(
            f"decode: {type(decoder).__name__} must ask the stopping criteria, and its state holds nothing "
            "of theirs, so stop= would be ignored. Keep limits.start(history) in the state and call "
            "limits.finish at every step, or use RowState."
        )


def step_by_step(decoder: object) -> Decoder[Any]:
    """The decoder itself. Raises unless it is one that goes step by step."""
    if isinstance(decoder, OwnLoop):
        raise TypeError(
            f"decode: {type(decoder).__name__} has a loop of its own, which cannot be watched step by step: "
            "no trace, no check_every, no capture, no batch_tokens, no progress, no streaming, no "
            "generate(). Use dk.decode(...) without them."
        )
    if not isinstance(decoder, Decoder):
        raise TypeError(
            f"decode: decoder must be a Decoder such as dk.Greedy() or dk.BeamSearch(5), got {decoder!r:.80}."
        )
    return decoder
