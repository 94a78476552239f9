"""Runs that go on abreast: each with a state of its own, and one session of the model for all of them."""

from dataclasses import replace
from typing import Generic, NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.prompt import PromptSubset
from decodekit.core.result import Decoded
from decodekit.decoders.base import Decoder, State
from decodekit.decoders.custom_loop import DecodeRequest
from decodekit.engine.batching.eviction import are_enough
from decodekit.engine.loop import DecodingRun, start_run
from decodekit.models.hf.memory_estimate import is_out_of_memory
from decodekit.models.protocols import LOGITS_ONLY, MergeableSession, Session, ShrinkingSession

# Each run costs a decoder's and the processors' work at every step, however few prompts it has left. With
# the model and the skewed lengths of benchmarks/throughput.py, 256 prompts took 488 passes in waves of 64
# rows, 338 with 4 runs, 244 with 8, 233 with 16; as many rows were read in each.
MOST_RUNS = 8


class BatchResult(NamedTuple):
    """Some prompts that are finished.

    Attributes:
        numbers: Which they are.
        result: Their result, without its context.
    """

    numbers: list[int]
    result: Decoded


class ContinuousBatch(Generic[State]):
    """Takes all its runs a step further in one pass of the model; more runs can begin in between.

    All rows of a run write the same column of their histories, and those of another run another one. So every
    run has a decoder's state of its own, and what processors and criteria remember.

    Args:
        job: All prompts, and what to do with them.
        decoder: The algorithm.

    Attributes:
        failure: The error that a run ended with. The others go on, and no more begin.
    """

    def __init__(self, request: DecodeRequest, decoder: Decoder[State]) -> None:
        self._request, self._decoder = request, decoder
        self._session: Session | None = None
        self._new: Session | None = None  # of the run that has just begun
        self._runs: list[DecodingRun[State]] = []
        self._logits: list[Float32[Tensor, "rows vocab"]] = []
        self._finished: list[BatchResult] = []
        self.failure: Exception | None = None

    @property
    def active(self) -> list[int]:
        """The prompts that are under way."""
        return [number for run in self._runs for number in run.active]

    @property
    def steps(self) -> list[int]:
        """How many tokens each of them has been given."""
        return [run.number for run in self._runs for _ in run.active]

    @property
    def has_place(self) -> bool:
        """Whether another run can begin while others are under way."""
        is_alone = self._decoder.outputs_spec != LOGITS_ONLY or self._request.options.capture
        if is_alone or self.failure is not None or len(self._runs) >= MOST_RUNS:
            return False
        return isinstance(self._session, MergeableSession) and self._session.can_merge()

    def begin(self, numbers: list[int]) -> None:
        """Starts a run of some prompts. Where the model cannot, nothing has changed."""
        subset = PromptSubset(sorted(numbers), self._request.prompt)
        request = replace(
            self._request, prompt=subset.prompt(trims_source=self._decoder.outputs_spec == LOGITS_ONLY)
        )
        session, logits = start_run(request, self._decoder)
        self._runs.append(DecodingRun(request, self._decoder, session, logits, subset))
        self._logits.append(logits)
        self._new = session

    def step(self) -> None:
        """A step of every run, and a pass of the model."""
        self._join()
        batch, logits = len(self.active), self._logits
        self._logits = []
        runs = self._runs
        self._runs = [run for run, own in zip(runs, logits, strict=True) if self._goes_on(run, own)]
        finished = batch - sum(run.prompts - run.finished for run in self._runs)
        if len(self._runs) < len(runs) or are_enough(finished, batch):
            self._let_leave(runs)
        if self._session is not None:
            self._logits = self._advance(self._session)

    def take_finished(self) -> list[BatchResult]:
        """The results since it was asked last."""
        parts, self._finished = self._finished, []
        for run in self._runs:
            parts += [BatchResult(*part) for part in run.take_evicted()]
        return parts

    def forget(self) -> None:
        """Ends all runs."""
        self._session, self._new, self._runs, self._logits = None, None, [], []

    def _join(self) -> None:
        """One session for all runs."""
        if self._session is None:
            self._session = self._new
        elif isinstance(self._session, MergeableSession) and isinstance(self._new, MergeableSession):
            self._session.merge(self._new)
        self._new = None

    def _goes_on(self, run: DecodingRun[State], logits: Float32[Tensor, "rows vocab"]) -> bool:
        try:
            run.step(logits)
            if not run.is_done():
                return True
            self._finished += [BatchResult(*part) for part in run.results()]
        except Exception as error:  # raised once the other runs are over
            if is_out_of_memory(error):
                raise
            self.failure = error
        return False

    def _let_leave(self, runs: list[DecodingRun[State]]) -> None:
        """Goes on without those of the runs that are over, and without the finished prompts of the others."""
        kept: list[Int64[Tensor, " some"]] = []
        batch = 0
        for run in runs:
            first, batch = batch, batch + run.prompts
            if run not in self._runs:
                continue
            stay = torch.arange(run.prompts, device=run.selection.tokens.device)
            if 0 < run.finished < run.prompts:
                stay = run.evict()
            kept.append(first + stay)
        if not kept:
            self._session = None
        elif sum(map(len, kept)) < batch and isinstance(self._session, ShrinkingSession):
            self._session.keep_prompts(torch.cat(kept))

    def _advance(self, session: Session) -> list[Float32[Tensor, "rows vocab"]]:
        """A pass of the model over the rows of all runs; returns each one's logits."""
        tokens = [run.selection.tokens for run in self._runs]
        sources, first = [], 0
        for run, said in zip(self._runs, tokens, strict=True):
            own = run.selection.source_rows
            sources.append(first + (torch.arange(len(said), device=said.device) if own is None else own))
            first += len(said)
        moved = any(run.selection.source_rows is not None for run in self._runs)
        logits = session.advance(torch.cat(tokens), torch.cat(sources) if moved else None)
        return list(torch.split(logits, [len(said) for said in tokens]))
