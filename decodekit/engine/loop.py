"""The loop that every `Decoder` shares, over every model, with every processor."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.utils._pytree import tree_flatten
from typing_extensions import override

from decodekit.core.limits import Limits, Stopping
from decodekit.core.prompt import Prompt, PromptSubset
from decodekit.core.request import DecodeRequest
from decodekit.core.result import Decoded
from decodekit.core.validation import shown
from decodekit.decoders.base import Decoder, Selection, State
from decodekit.engine.batching.eviction import ActivePrompts, ActiveState, can_evict, pays_to_evict
from decodekit.engine.capture import CapturedStep, start_captured
from decodekit.engine.step import StepResult, decode_step
from decodekit.errors import DecodekitError, is_out_of_memory
from decodekit.models.protocols import (
    LOGITS_ONLY,
    MergeableSession,
    Model,
    ModelWithOutputs,
    Session,
    SessionWithOutputs,
    ShrinkingSession,
)
from decodekit.processors.base import LogitsProcessor, nonfinite_error

# Each run costs the work of a decoder and its processors at every step, however few prompts it has left. With
# the model and the skewed lengths of benchmarks/throughput.py, 256 prompts took 488 passes in batches of 64
# rows, 338 with 4 runs, 244 with 8, 233 with 16; each read as many rows.
MOST_RUNS = 8


class BatchResult(NamedTuple):
    """The result of some prompts, without its context.

    Attributes:
        prompts: Their indices.
        result: Their result.
    """

    prompts: list[int]
    result: Decoded[Any]


class Admission(Protocol):
    """The prompts that wait for their turn."""

    @property
    def waiting(self) -> bool:
        """True while prompts wait."""

    def next(self, batch: "ContinuousBatch[Any]") -> list[int]:
        """The prompts to admit now; none if the batch is full."""

    def recovery(self, batch: "ContinuousBatch[Any]") -> AbstractContextManager[None]:
        """A context that recovers from running out of memory, if it can."""


class AdmitAll(Admission):
    """Admission of all prompts at once."""

    def __init__(self, prompts: int) -> None:
        self._prompts = list(range(prompts))

    @property
    @override
    def waiting(self) -> bool:
        return bool(self._prompts)

    @override
    def next(self, batch: "ContinuousBatch[Any]") -> list[int]:
        prompts, self._prompts = self._prompts, []
        return prompts

    @override
    def recovery(self, batch: "ContinuousBatch[Any]") -> AbstractContextManager[None]:
        return nullcontext()


@torch.no_grad()
def decode_loop(
    batch: "ContinuousBatch[State]", admission: Admission
) -> Generator[list["DecodingRun[State]"], None, None]:
    """Decode all prompts: admit, step, and let the model read, until no prompt is left.

    Args:
        batch: The batch, empty.
        admission: The prompts.

    Yields:
        The runs that have taken a step, after every step.
    """
    while admission.waiting or batch.active:
        stepped: list[DecodingRun[State]] = []
        with admission.recovery(batch):
            batch.admit(admission.next(batch))
            stepped = batch.step()
        yield stepped
        if batch.failure is not None and not batch.active:
            raise batch.failure
        with admission.recovery(batch):
            batch.forward()


class ContinuousBatch(Generic[State]):
    """Runs that share one session of the model; prompts join and leave while it goes on.

    Prompts that are admitted together make a `DecodingRun`: they write the same column of their histories, so
    they share a state of the decoder and the memory of the processors. All runs advance in one pass.

    Attributes:
        request: All prompts and the options.
        failure: The error of a run. The other runs go on, and no further prompt is admitted.
        session: The session of the model; None while no run is active.
    """

    def __init__(
        self, model: Model, decoder: Decoder[State, Any], processor: LogitsProcessor, request: DecodeRequest
    ) -> None:
        self._model, self._decoder, self._processor, self.request = model, decoder, processor, request
        self.session: Session | None = None
        self._new: Session | None = None  # of the run that has just started, not merged yet
        self._runs: list[DecodingRun[State]] = []
        self._finished: list[BatchResult] = []
        self.starting: list[int] = []
        self.failure: Exception | None = None

    @property
    def active(self) -> list[int]:
        """The prompts that are being decoded."""
        return [prompt for run in self._runs for prompt in run.active]

    @property
    def steps(self) -> list[int]:
        """The steps taken for each active prompt."""
        return [run.number for run in self._runs for _ in run.active]

    @property
    def can_admit(self) -> bool:
        """True if more prompts can join the active ones."""
        is_fixed = self._decoder.outputs_spec != LOGITS_ONLY or self.request.capture
        if is_fixed or self.failure is not None or len(self._runs) >= MOST_RUNS:
            return False
        return isinstance(self.session, MergeableSession) and self.session.can_merge()

    def admit(self, prompts: list[int]) -> None:
        """Start a run of some prompts, if there are any. If the model fails, only `starting` has changed."""
        if not prompts:
            return
        request, subset = self.request, None
        self.starting = prompts
        if len(prompts) < len(request.prompt.tokens):
            subset = PromptSubset(sorted(prompts), request.prompt)
            trims_source = self._decoder.outputs_spec == LOGITS_ONLY
            request = replace(request, prompt=subset.prompt(trims_source=trims_source))
        starter = start_captured if request.capture else start_session
        capacity = request.prompt.tokens.shape[1] + request.max_new_tokens
        session, logits = starter(self._model, request.prompt, self._decoder, capacity)
        self._runs.append(DecodingRun(self._decoder, self._processor, request, session, logits, subset))
        self._new, self.starting = session, []

    def step(self) -> list["DecodingRun[State]"]:
        """Take a step of every run, and evict finished prompts; returns the runs as they were."""
        self._merge()
        runs, batch = self._runs, len(self.active)
        self._runs = []
        for run in runs:
            if self._take_step(run):
                self._runs.append(run)
        finished = batch - sum(len(run.active) - run.finished for run in self._runs)
        if len(self._runs) < len(runs) or pays_to_evict(finished, batch):
            self._evict(runs)
        return runs

    def forward(self) -> None:
        """Run one pass of the model over the next tokens of all rows."""
        if self.session is None:
            return
        if len(self._runs) == 1:
            run = self._runs[0]
            run.logits = self.session.advance(*run.selection)
            return
        selections = [run.selection for run in self._runs]
        sources, first = [], 0
        for tokens, source_rows in selections:
            rows = torch.arange(len(tokens), device=tokens.device) if source_rows is None else source_rows
            sources.append(first + rows)
            first += len(tokens)
        moved = any(selection.source_rows is not None for selection in selections)
        tokens = torch.cat([selection.tokens for selection in selections])
        logits = self.session.advance(tokens, torch.cat(sources) if moved else None)
        for run, own in zip(
            self._runs, torch.split(logits, [len(s.tokens) for s in selections]), strict=True
        ):
            run.logits = own

    def take_finished(self) -> list[BatchResult]:
        """The results since the last call."""
        results, self._finished = self._finished, []
        for run in self._runs:
            results += run.take_evicted()
        return results

    def clear(self) -> None:
        """Drop all runs."""
        self.session, self._new, self._runs = None, None, []

    def _merge(self) -> None:
        new, self._new = self._new, None
        if self.session is None:
            self.session = new
        elif isinstance(new, MergeableSession) and isinstance(self.session, MergeableSession):
            self.session.merge(new)

    def _take_step(self, run: "DecodingRun[State]") -> bool:
        """Take a step of a run; returns False if the run is done, with its results kept, or has failed."""
        try:
            run.step()
            if not run.is_done():
                return True
            self._finished += run.results()
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.failure = error  # raised once the other runs are done and results are handed out
        return False

    def _evict(self, runs: list["DecodingRun[State]"]) -> None:
        """Go on without the runs that are done, and without finished prompts."""
        kept: list[Int64[Tensor, " some"]] = []
        batch = 0
        for run in runs:
            first, batch = batch, batch + len(run.active)
            if run in self._runs:
                stay = torch.arange(len(run.active), device=run.selection.tokens.device)
                if 0 < run.finished < len(run.active):
                    stay = run.evict()
                kept.append(first + stay)
        if not kept:
            self.session = None
        elif sum(map(len, kept)) < batch and isinstance(self.session, ShrinkingSession):
            self.session.keep_prompts(torch.cat(kept))


class DecodingRun(Generic[State]):
    """Prompts that were admitted together, one step at a time.

    `subset` gives the place of the prompts among all prompts, if they are a part.

    Attributes:
        number: Steps taken.
        logits: Logits for the next step, or of the last one.
        scores: Scores of the last step, after the processors.
        selection: The decision of the last step, which the model reads next.
        state: State of the decoder.
        limits: Limits of hypotheses.
        session: The session that has read the prompts.
    """

    def __init__(
        self,
        decoder: Decoder[State, Any],
        processor: LogitsProcessor,
        request: DecodeRequest,
        session: Session,
        logits: Float32[Tensor, "rows vocab"],
        subset: PromptSubset | None = None,
    ) -> None:
        self._decoder, self._check_every = decoder, request.check_every
        self.session = session
        self._last = request.max_new_tokens + decoder.delay
        self.number, self.limits = 0, Limits.of(request, logits.shape[-1])
        capacity = request.prompt.tokens.shape[1] + request.max_new_tokens
        history = request.prompt.to(logits.device).history(capacity, decoder.rows_per_prompt)
        history = history if subset is None else subset.of_run(history)
        self.state, self._memory = decoder.init(history, self.limits), processor.init(history)
        check_state(decoder, self.state, self.limits)
        self._nonfinite = torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
        self.logits = self.scores = logits
        self.selection = Selection(history.last())  # before the first step
        self._decode_step = _stepper(decoder, processor, self.limits, request)
        parts, memory = (decoder, processor, request.criteria), (self.state, self._memory)
        free = not request.watched and request.trace is None
        # A captured step has a batch of fixed size.
        evicts = free and not request.capture and can_evict(session, parts, memory)
        self._prompts = ActivePrompts(decoder, history, may_evict=evicts, waits=not free)

    @property
    def active(self) -> list[int]:
        """The prompts that are being decoded."""
        return self._prompts.active

    @property
    def finished(self) -> int:
        """Number of finished prompts that are still in the batch."""
        return self._prompts.finished

    def step(self) -> None:
        """Take a step from the logits of the model."""
        self.number += 1
        state = on_model_outputs(self._decoder, self.session, self.state)
        self.state, self.selection, self._memory, self.scores, self._nonfinite = self._decode_step(
            self.logits, state, self._memory, self._nonfinite
        )

    def is_done(self) -> bool:
        """True if the run is known to be done. Call it once after every step."""
        if self.number == self._last:
            return True
        if self.number % self._check_every == 0:
            self._prompts.ask(self.state, self._nonfinite)
        return self._prompts.is_done()

    def evict(self) -> Int64[Tensor, " kept"]:
        """Keep the results of finished prompts, and go on without them; returns the places that stay."""
        active = ActiveState(self.state, self._memory, self.selection, self._nonfinite)
        active, kept = self._prompts.evict(active)
        self.state, self._memory, self.selection, self._nonfinite = active
        return kept

    def take_evicted(self) -> list[BatchResult]:
        """The results of prompts that were evicted since the last call."""
        evicted, self._prompts.evicted = self._prompts.evicted, []
        return [BatchResult(*pair) for pair in evicted]

    def results(self) -> list[BatchResult]:
        """The results of all prompts that were not taken yet.

        Raises:
            DecodingError: If some score was not a number.
        """
        if self._nonfinite.any():
            row = int(self._nonfinite.int().argmax())
            raise nonfinite_error(self.state.history.prompt(row // self._decoder.rows_per_prompt))
        return [BatchResult(*pair) for pair in self._prompts.results(self.state)]


def start_session(
    model: Model, prompt: Prompt, decoder: Decoder[State, Any], capacity: int
) -> tuple[Session, Float32[Tensor, "rows vocab"]]:
    """The session of a model, with the outputs that a decoder needs, and the logits after the prompts."""
    rows, spec = decoder.rows_per_prompt, decoder.outputs_spec
    if spec == LOGITS_ONLY:
        return model.start(prompt, rows_per_prompt=rows, capacity=capacity)
    if not isinstance(model, ModelWithOutputs):
        raise DecodekitError(
            f"decode: {type(decoder).__name__} needs a model that returns {spec}, and {shown(model)} has no "
            "start_with_outputs(). Use dk.HFModel, or write that method: see decodekit.ModelWithOutputs."
        )
    return model.start_with_outputs(prompt, rows_per_prompt=rows, capacity=capacity, outputs_spec=spec)


def on_model_outputs(decoder: Decoder[State, Any], session: Session | None, state: State) -> State:
    """The state of a decoder with the outputs that it asks for."""
    if decoder.outputs_spec != LOGITS_ONLY and isinstance(session, SessionWithOutputs):
        return decoder.on_model_outputs(session.model_outputs, state)
    return state


def _stepper(
    decoder: Decoder[Any, Any], processor: LogitsProcessor, limits: Limits, request: DecodeRequest
) -> Callable[..., StepResult]:
    """The function that takes a step from logits, state, memory and non-finite rows."""
    if request.capture:
        return CapturedStep(decoder, processor, limits.criteria)
    return partial(decode_step, decoder, processor)


def check_state(decoder: Decoder[State, Any], state: State, limits: Limits) -> None:
    """Raise if the decoder could not report log-probabilities, or would ignore the stopping criteria."""
    name = type(decoder).__name__
    if "model_scores" not in getattr(state, "_fields", ()):
        raise DecodekitError(
            f"decode: the state of {name} must be a NamedTuple with the field model_scores = None, which the "
            "engine fills with the scores to report log-probabilities from. Add it, or use RowDecoder."
        )
    leaves = tree_flatten(state, is_leaf=lambda part: isinstance(part, Stopping))[0]
    if limits.criteria and not any(isinstance(leaf, Stopping) for leaf in leaves):
        raise DecodekitError(
            f"decode: {name} must apply the stopping criteria, but its state holds no `Stopping`, so "
            "stop= would be ignored. Keep limits.start(history) in the state and call limits.finish at every "
            "step, or use RowDecoder."
        )
