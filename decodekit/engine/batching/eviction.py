"""Prompts that are finished leave the batch, and the others go on without them."""

from collections.abc import Sequence
from typing import Generic, NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from decodekit.core.batch_independence import can_be_split, whole_part
from decodekit.core.history import History, rows_of
from decodekit.core.pytrees import Memory, keep_prompts
from decodekit.core.result import Decoded
from decodekit.decoders.base import Decoder, Selection, State
from decodekit.engine.batching.async_flags import async_flags_for
from decodekit.engine.batching.merging import of_run
from decodekit.models.protocols import Session, ShrinkingSession

# They leave together, once no more than this part of the batch goes on, because a cut copies what stays. On a
# CPU, with the 4 layers and skewed lengths of benchmarks/throughput.py, 96 prompts took 19.6 s where nobody
# leaves, 11.7 at a half, 10.4 at three quarters, 10.1 at nine tenths.
MOST = 0.75


class Present(NamedTuple, Generic[State]):
    """What a run goes on with, after a step and before the model reads it.

    Attributes:
        state: The decoder's.
        memory: The processors'.
        selection: What the step decided.
        broken: Rows on which some score so far was not a number.
    """

    state: State
    memory: Memory
    selection: Selection
    nonfinite: Bool[Tensor, " rows"]


class ActivePrompts(Generic[State]):
    """Which prompts of a run are still there, and the results of those that have left.

    Args:
        decoder: Says which are finished.
        history: The rows at first.
        may_evict: False keeps all of them to the end.
        waits: Whether the device is waited for at every question.

    Attributes:
        here: Which prompts are still there.
        left: The results of those that have left, and which they are; it grows.
    """

    def __init__(self, decoder: Decoder[State], history: History, *, may_evict: bool, waits: bool) -> None:
        self._decoder = decoder
        batch, device = len(history.tokens) // decoder.rows_per_prompt, history.tokens.device
        self.active: list[int] = history.own(torch.arange(history.batch, device=device)).tolist()
        self._may_evict = may_evict and batch > 1
        self._flags = async_flags_for(torch.device("cpu") if waits else device)
        self._gone: list[int] = []
        self.evicted: list[tuple[list[int], Decoded]] = []

    def ask(self, state: State, nonfinite: Bool[Tensor, " rows"]) -> None:
        """Asks whether the run is done, and which prompts are finished."""
        over = (state.done | nonfinite.any()).view(1)
        finished = self._decoder.finished(state) if self._may_evict else None
        self._flags.ask(over if finished is None else torch.cat([over, finished]))

    def is_done(self) -> bool:
        """Whether the run is known to be done."""
        answer = self._flags.newest()
        if answer is None:
            return False
        is_done, *finished = answer
        self._gone = [place for place, is_finished in enumerate(finished) if is_finished]
        return is_done

    @property
    def finished(self) -> int:
        """How many prompts are known to be finished."""
        return len(self._gone)

    def evict(self, present: Present[State]) -> tuple[Present[State], Int64[Tensor, " kept"]]:
        """Takes down the results of those that are finished; returns what goes on, and which prompts stay."""
        batch, device, gone = len(self.active), present.nonfinite.device, self._gone
        stay = sorted(set(range(batch)) - set(gone))
        finished = keep_prompts(present.state, torch.tensor(gone, device=device), batch)
        self.evicted.append(self._result(finished, [self.active[place] for place in gone]))
        self.active, self._gone = [self.active[place] for place in stay], []
        self._flags.forget()
        kept = torch.tensor(stay, device=device)
        state, memory, nonfinite = keep_prompts(
            (present.state, present.memory, present.nonfinite), kept, batch
        )
        return Present(state, memory, _of_some(present.selection, kept, batch), nonfinite), kept

    def results(self, state: State) -> list[tuple[list[int], Decoded]]:
        """The results of all prompts, and which prompts each is of."""
        return [*self.evicted, self._result(state, self.active)]

    def _result(self, state: State, numbers: list[int]) -> tuple[list[int], Decoded]:
        return numbers, of_run(self._decoder.finalize(state), numbers, self._decoder.rows_per_prompt)


def are_enough(finished: int, prompts: int) -> bool:
    """Whether so many of so many prompts are enough to leave, and others go on."""
    return 0 < prompts - finished <= MOST * prompts


def _of_some(selection: Selection, prompts: Int64[Tensor, " kept"], batch: int) -> Selection:
    """What a step decided for some prompts, by the rows that they will have."""
    rows_per_prompt = len(selection.tokens) // batch
    rows = rows_of(prompts, rows_per_prompt)
    sources = selection.source_rows
    if sources is not None:
        first = rows_of(torch.arange(len(prompts), device=rows.device), rows_per_prompt)
        first = first // rows_per_prompt * rows_per_prompt
        sources = first + sources.index_select(0, rows) % rows_per_prompt
    return Selection(selection.tokens.index_select(0, rows), sources)


def can_evict(session: Session, parts: Sequence[object], memory: Memory) -> bool:
    """Whether prompts can leave.

    Args:
        session: The model's run.
        parts: What else the run is made of: decoder, processors, criteria.
        memory: What those remember.
    """
    if not isinstance(session, ShrinkingSession) or not session.can_evict:
        return False
    return whole_part(*parts) is None and can_be_split(memory)
