"""The one loop: every decoder over every model, with every processor."""

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from decodekit.core import trace as tracing
from decodekit.core.limits import Limits, Stopping
from decodekit.core.prompt import Prompt, Share
from decodekit.core.request import Options
from decodekit.core.result import Decoded
from decodekit.core.vocabulary import Vocabulary
from decodekit.decoders.base import Decoder, Selection, State
from decodekit.decoders.custom_loop import Job, OwnLoop
from decodekit.engine.batching.eviction import Attendance, Present, are_enough, can_leave
from decodekit.engine.batching.merging import join
from decodekit.engine.capture import CapturedStep, start_captured
from decodekit.engine.inputs import as_model, as_processor, vocabulary_of
from decodekit.engine.step import Step, step
from decodekit.errors import DecodekitError
from decodekit.models.protocols import Model, RevealingModel, RevealingSession, Session, ShrinkingSession
from decodekit.processors.apply import not_numbers
from decodekit.processors.base import LogitsProcessor


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
def walk(job: Job, decoder: Decoder[State]) -> Generator[Progress[State], None, Walked]:
    """The loop itself.

    Args:
        job: What to continue, and how.
        decoder: The algorithm.
    """
    options, prompt = job.options, job.prompt
    session, logits = start_run(job, decoder)
    run = Run(job, decoder, session, logits)
    steps: list[tracing.Step] = []
    while True:
        scores = run.step(logits)
        if options.trace is not None:
            steps.append(tracing.record(logits, scores, *run.selection, options.trace))
        number, state, selection, limits = run.number, run.state, run.selection, run.limits
        yield Progress(number, state, logits, scores, selection, limits, prompt, job.vocabulary, session)
        if run.is_over():
            return Walked(run.results(), limits, steps)
        if are_enough(run.finished, run.prompts) and isinstance(session, ShrinkingSession):
            session.keep_prompts(run.leave())
        logits = session.advance(*run.selection)


class Run(Generic[State]):
    """A decoder over some prompts, one step at a time: is given the model's logits, and says how to go on.

    Args:
        job: What to continue, and how.
        decoder: The algorithm.
        session: The model's run over the prompts.
        logits: After the prompts.
        share: Whose the prompts are, where they are a part of those that `decode` was given.

    Attributes:
        number: Steps taken.
        state: The decoder's.
        selection: What the last step decided: what the model must read next.
        limits: Where hypotheses end.
    """

    def __init__(
        self,
        job: Job,
        decoder: Decoder[State],
        session: Session,
        logits: Float32[Tensor, "rows vocab"],
        share: Share | None = None,
    ) -> None:
        options, length, rows = job.options, job.prompt.tokens.shape[1], decoder.rows_per_prompt
        self._decoder = decoder
        self._shows = session if isinstance(session, RevealingSession) else None
        self._last, self._check_every = options.max_new_tokens + decoder.delay, options.check_every
        self.number, self.limits = 0, job.limits(logits.shape[-1])
        history = job.prompt.to(logits.device).history(length + options.max_new_tokens, rows)
        history = history if share is None else share.of_run(history)
        self.state, self._memory = decoder.init(history, self.limits), job.processor.init(history)
        _check_asks(decoder, self.state, self.limits)
        self._broken = torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
        self.selection = Selection(history.last())  # nothing yet
        self._take = _stepper(decoder, job.processor, self.limits, options)
        parts, memory = (decoder, job.processor, options.criteria), (self.state, self._memory)
        free = options.free and not options.capture  # a recorded step has a batch of fixed size
        may_leave = free and can_leave(session, parts, memory)
        self._attendance = Attendance(decoder, history, may_leave=may_leave, waits=not options.free)

    def step(self, logits: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, "rows vocab"]:
        """A step from the model's logits; returns the scores after the processors."""
        self.number += 1
        state = look(self._decoder, self._shows, self.state)
        self.state, self.selection, self._memory, scores, self._broken = self._take(
            logits, state, self._memory, self._broken
        )
        return scores

    def is_over(self) -> bool:
        """Whether that was the last step, as far as it is known. To be asked once after every step."""
        if self.number == self._last:
            return True
        if self.number % self._check_every == 0:
            self._attendance.ask(self.state, self._broken)
        return self._attendance.is_over()

    @property
    def prompts(self) -> int:
        """How many are still there."""
        return len(self._attendance.here)

    @property
    def here(self) -> list[int]:
        """Which those are."""
        return self._attendance.here

    @property
    def finished(self) -> int:
        """How many of them are known to be finished, and can leave."""
        return self._attendance.finished

    def leave(self) -> Int64[Tensor, " kept"]:
        """Takes down the results of those, and goes on without them; returns which prompts stay."""
        present = Present(self.state, self._memory, self.selection, self._broken)
        present, kept = self._attendance.leave(present)
        self.state, self._memory, self.selection, self._broken = present
        return kept

    def take_left(self) -> list[tuple[list[int], Decoded]]:
        """The results of prompts that have left since it was asked last, and which prompts each is of."""
        left, self._attendance.left = self._attendance.left, []
        return left

    def results(self) -> list[tuple[list[int], Decoded]]:
        """The same of all prompts whose results were not taken yet.

        Raises:
            DecodingError: If some score was not a number.
        """
        if self._broken.any():
            row = int(self._broken.int().argmax())
            raise not_numbers(self.state.history.prompt(row // self._decoder.rows_per_prompt))
        return self._attendance.results(self.state)


def start_run(job: Job, decoder: Decoder[Any]) -> tuple[Session, Float32[Tensor, "rows vocab"]]:
    """The model's session for a run, and the logits after the prompts."""
    starting = start_captured if job.options.capture else start
    return starting(job.model, job.prompt, decoder, job.prompt.tokens.shape[1] + job.options.max_new_tokens)


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


def look(decoder: Decoder[State], session: Session | None, state: State) -> State:
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
