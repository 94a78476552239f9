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
from decodekit.core.prompt import Prompt, PromptSubset
from decodekit.core.request import Options
from decodekit.core.result import Decoded
from decodekit.core.vocabulary import Vocabulary
from decodekit.decoders.base import Decoder, Selection, State
from decodekit.decoders.custom_loop import CustomLoop, DecodeRequest
from decodekit.engine.batching.eviction import ActivePrompts, Present, are_enough, can_evict
from decodekit.engine.batching.merging import join
from decodekit.engine.capture import CapturedStep, start_captured
from decodekit.engine.inputs import as_model, as_processor, vocabulary_of
from decodekit.engine.step import Step, step
from decodekit.errors import DecodekitError
from decodekit.models.protocols import Model, ModelWithOutputs, Session, SessionWithOutputs, ShrinkingSession
from decodekit.processors.base import LogitsProcessor, nonfinite_error


class StepSnapshot(NamedTuple, Generic[State]):
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


class LoopResult(NamedTuple):
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
) -> Generator[StepSnapshot[State], None, Decoded]:
    """A decoder over some prompts: a `StepSnapshot` after every step, and at the end the result."""
    step_by_step(decoder)
    model = as_model(model)
    vocabulary = vocabulary_of(model)
    request = DecodeRequest(
        model, Prompt.of(prompts, vocabulary), as_processor(processor), options, vocabulary
    )
    loop = yield from decode_loop(request, decoder)
    result, traced = join(loop.parts), None
    if options.trace is not None:
        ends, rows = loop.limits.end_ids, decoder.rows_per_prompt
        traced = tracing.Trace(request.prompt, rows, vocabulary, ends, loop.steps, result.lengths)
    return result.with_context(request.prompt, vocabulary, traced, options.criteria)


@torch.no_grad()
def decode_loop(
    request: DecodeRequest, decoder: Decoder[State]
) -> Generator[StepSnapshot[State], None, LoopResult]:
    """The loop itself.

    Args:
        job: What to continue, and how.
        decoder: The algorithm.
    """
    options, prompt = request.options, request.prompt
    session, logits = start_run(request, decoder)
    run = DecodingRun(request, decoder, session, logits)
    steps: list[tracing.Step] = []
    while True:
        scores = run.step(logits)
        if options.trace is not None:
            steps.append(tracing.record(logits, scores, *run.selection, options.trace))
        number, state, selection, limits = run.number, run.state, run.selection, run.limits
        yield StepSnapshot(
            number, state, logits, scores, selection, limits, prompt, request.vocabulary, session
        )
        if run.is_done():
            return LoopResult(run.results(), limits, steps)
        if are_enough(run.finished, run.prompts) and isinstance(session, ShrinkingSession):
            session.keep_prompts(run.evict())
        logits = session.advance(*run.selection)


class DecodingRun(Generic[State]):
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
        request: DecodeRequest,
        decoder: Decoder[State],
        session: Session,
        logits: Float32[Tensor, "rows vocab"],
        subset: PromptSubset | None = None,
    ) -> None:
        options, length, rows = request.options, request.prompt.tokens.shape[1], decoder.rows_per_prompt
        self._decoder = decoder
        self._shows = session if isinstance(session, SessionWithOutputs) else None
        self._last, self._check_every = options.max_new_tokens + decoder.delay, options.check_every
        self.number, self.limits = 0, request.limits(logits.shape[-1])
        history = request.prompt.to(logits.device).history(length + options.max_new_tokens, rows)
        history = history if subset is None else subset.of_run(history)
        self.state, self._memory = decoder.init(history, self.limits), request.processor.init(history)
        _check_asks(decoder, self.state, self.limits)
        self._nonfinite = torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
        self.selection = Selection(history.last())  # nothing yet
        self._take = _stepper(decoder, request.processor, self.limits, options)
        parts, memory = (decoder, request.processor, options.criteria), (self.state, self._memory)
        free = options.free and not options.capture  # a recorded step has a batch of fixed size
        may_evict = free and can_evict(session, parts, memory)
        self._active = ActivePrompts(decoder, history, may_evict=may_evict, waits=not options.free)

    def step(self, logits: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, "rows vocab"]:
        """A step from the model's logits; returns the scores after the processors."""
        self.number += 1
        state = on_model_outputs(self._decoder, self._shows, self.state)
        self.state, self.selection, self._memory, scores, self._nonfinite = self._take(
            logits, state, self._memory, self._nonfinite
        )
        return scores

    def is_done(self) -> bool:
        """Whether that was the last step, as far as it is known. To be asked once after every step."""
        if self.number == self._last:
            return True
        if self.number % self._check_every == 0:
            self._active.ask(self.state, self._nonfinite)
        return self._active.is_done()

    @property
    def prompts(self) -> int:
        """How many are still there."""
        return len(self._active.active)

    @property
    def active(self) -> list[int]:
        """Which those are."""
        return self._active.active

    @property
    def finished(self) -> int:
        """How many of them are known to be finished, and can leave."""
        return self._active.finished

    def evict(self) -> Int64[Tensor, " kept"]:
        """Takes down the results of those, and goes on without them; returns which prompts stay."""
        present = Present(self.state, self._memory, self.selection, self._nonfinite)
        present, kept = self._active.evict(present)
        self.state, self._memory, self.selection, self._nonfinite = present
        return kept

    def take_evicted(self) -> list[tuple[list[int], Decoded]]:
        """The results of prompts that have left since it was asked last, and which prompts each is of."""
        evicted, self._active.evicted = self._active.evicted, []
        return evicted

    def results(self) -> list[tuple[list[int], Decoded]]:
        """The same of all prompts whose results were not taken yet.

        Raises:
            DecodingError: If some score was not a number.
        """
        if self._nonfinite.any():
            row = int(self._nonfinite.int().argmax())
            raise nonfinite_error(self.state.history.prompt(row // self._decoder.rows_per_prompt))
        return self._active.results(self.state)


def start_run(request: DecodeRequest, decoder: Decoder[Any]) -> tuple[Session, Float32[Tensor, "rows vocab"]]:
    """The model's session for a run, and the logits after the prompts."""
    starting = start_captured if request.options.capture else start
    return starting(
        request.model,
        request.prompt,
        decoder,
        request.prompt.tokens.shape[1] + request.options.max_new_tokens,
    )


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
    if not decoder.outputs_spec:
        return model.start(prompt, rows_per_prompt=rows, capacity=capacity)
    if not isinstance(model, ModelWithOutputs):
        raise DecodekitError(
            f"decode: {type(decoder).__name__} needs a model that shows {decoder.outputs_spec}, and "
            f"{model!r:.80} has no start_with_outputs(). Use dk.HFModel, or write "
            "that method: see decodekit.ModelWithOutputs."
        )
    return model.start_with_outputs(
        prompt, rows_per_prompt=rows, capacity=capacity, outputs_spec=decoder.outputs_spec
    )


def on_model_outputs(decoder: Decoder[State], session: Session | None, state: State) -> State:
    """The decoder's state after it has seen what the model shows, if it asks for that."""
    if decoder.outputs_spec and isinstance(session, SessionWithOutputs):
        return decoder.on_model_outputs(session.model_outputs, state)
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
    if isinstance(decoder, CustomLoop):
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
