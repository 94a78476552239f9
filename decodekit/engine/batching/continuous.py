"""Runs that go on abreast: each with a state of its own, and one session of the model for all of them."""

from dataclasses import replace
from typing import Generic, NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.prompt import Share
from decodekit.core.result import Decoded
from decodekit.decoders.base import Decoder, State
from decodekit.decoders.custom_loop import Job
from decodekit.engine.batching.eviction import are_enough
from decodekit.engine.loop import Run, start_run
from decodekit.models.hf.memory_estimate import is_out_of_memory
from decodekit.models.model_outputs import NOTHING
from decodekit.models.protocols import JoiningSession, Session, ShrinkingSession

# Each run costs a decoder's and the processors' work at every step, however few prompts it has left. With
# the model and the skewed lengths of benchmarks/throughput.py, 256 prompts took 488 passes in waves of 64
# rows, 338 with 4 runs, 244 with 8, 233 with 16; as many rows were read in each.
MOST_RUNS = 8


class Part(NamedTuple):
    """Some prompts that are finished.

    Attributes:
        numbers: Which they are.
        result: Their result, without its context.
    """

    numbers: list[int]
    result: Decoded


class Abreast(Generic[State]):
    """Takes all its runs a step further in one pass of the model; more runs can begin in between.

    All rows of a run write the same column of their histories, and those of another run another one. So every
    run has a decoder's state of its own, and what processors and criteria remember.

    Args:
        job: All prompts, and what to do with them.
        decoder: The algorithm.

    Attributes:
        failure: The error that a run ended with. The others go on, and no more begin.
    """

    def __init__(self, job: Job, decoder: Decoder[State]) -> None:
        self._job, self._decoder = job, decoder
        self._session: Session | None = None
        self._new: Session | None = None  # of the run that has just begun
        self._runs: list[Run[State]] = []
        self._logits: list[Float32[Tensor, "rows vocab"]] = []
        self._finished: list[Part] = []
        self.failure: Exception | None = None

    @property
    def here(self) -> list[int]:
        """The prompts that are under way."""
        return [number for run in self._runs for number in run.here]

    @property
    def steps(self) -> list[int]:
        """How many tokens each of them has been given."""
        return [run.number for run in self._runs for _ in run.here]

    @property
    def has_place(self) -> bool:
        """Whether another run can begin while others are under way."""
        is_alone = self._decoder.reveal != NOTHING or self._job.options.capture
        if is_alone or self.failure is not None or len(self._runs) >= MOST_RUNS:
            return False
        return isinstance(self._session, JoiningSession) and self._session.can_join()

    def begin(self, numbers: list[int]) -> None:
        """Starts a run of some prompts. Where the model cannot, nothing has changed."""
        share = Share(sorted(numbers), self._job.prompt)
        job = replace(self._job, prompt=share.prompt(trims_source=self._decoder.reveal == NOTHING))
        session, logits = start_run(job, self._decoder)
        self._runs.append(Run(job, self._decoder, session, logits, share))
        self._logits.append(logits)
        self._new = session

    def step(self) -> None:
        """A step of every run, and a pass of the model."""
        self._join()
        batch, logits = len(self.here), self._logits
        self._logits = []
        runs = self._runs
        self._runs = [run for run, own in zip(runs, logits, strict=True) if self._goes_on(run, own)]
        finished = batch - sum(run.prompts - run.finished for run in self._runs)
        if len(self._runs) < len(runs) or are_enough(finished, batch):
            self._let_leave(runs)
        if self._session is not None:
            self._logits = self._advance(self._session)

    def take_finished(self) -> list[Part]:
        """The results since it was asked last."""
        parts, self._finished = self._finished, []
        for run in self._runs:
            parts += [Part(*part) for part in run.take_left()]
        return parts

    def forget(self) -> None:
        """Ends all runs."""
        self._session, self._new, self._runs, self._logits = None, None, [], []

    def _join(self) -> None:
        """One session for all runs."""
        if self._session is None:
            self._session = self._new
        elif isinstance(self._session, JoiningSession) and isinstance(self._new, JoiningSession):
            self._session.join(self._new)
        self._new = None

    def _goes_on(self, run: Run[State], logits: Float32[Tensor, "rows vocab"]) -> bool:
        try:
            run.step(logits)
            if not run.is_over():
                return True
            self._finished += [Part(*part) for part in run.results()]
        except Exception as error:  # raised once the other runs are over
            if is_out_of_memory(error):
                raise
            self.failure = error
        return False

    def _let_leave(self, runs: list[Run[State]]) -> None:
        """Goes on without those of the runs that are over, and without the finished prompts of the others."""
        kept: list[Int64[Tensor, " some"]] = []
        batch = 0
        for run in runs:
            first, batch = batch, batch + run.prompts
            if run not in self._runs:
                continue
            stay = torch.arange(run.prompts, device=run.selection.tokens.device)
            if 0 < run.finished < run.prompts:
                stay = run.leave()
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
