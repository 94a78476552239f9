"""Eviction of finished prompts from a batch, and non-blocking reads of the flags that mark them."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, final

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History, rows_of
from decodekit.core.pytrees import Memory, can_be_split, keep_prompts, whole_part
from decodekit.core.result import Decoded
from decodekit.decoders.base import Decoder, Selection, State
from decodekit.engine.batching.merging import with_run_parents
from decodekit.models.protocols import Session, ShrinkingSession

# Finished prompts are evicted together, once at most this part of the batch goes on, because eviction copies
# the rest. On a CPU, with the 4 layers and skewed lengths of benchmarks/throughput.py, 96 prompts took 19.6 s
# without eviction, 11.7 at a half, 10.4 at three quarters, 10.1 at nine tenths.
MOST = 0.75
# Maximum of unanswered reads. Without it, the host would run ahead of a device that is done.
AHEAD = 4


class ActiveState(NamedTuple, Generic[State]):
    """The state of a run between a step and the next pass of the model.

    Attributes:
        state: State of the decoder.
        memory: Memory of the processors.
        selection: The decision of the step.
        nonfinite: True for rows that have had a non-finite score.
    """

    state: State
    memory: Memory
    selection: Selection
    nonfinite: Bool[Tensor, " rows"]


class ActivePrompts(Generic[State]):
    """Active prompts of a run, and the results of evicted ones.

    Args:
        decoder: The algorithm, which knows the finished prompts.
        history: The rows before the first step.
        may_evict: False keeps all prompts to the end.
        waits: True waits for the device at every read.

    Attributes:
        active: Indices of the active prompts.
        evicted: Indices and results of evicted prompts, which the caller removes.
    """

    def __init__(
        self, decoder: Decoder[State, Any], history: History, *, may_evict: bool, waits: bool
    ) -> None:
        self._decoder = decoder
        prompts = history.owners.prompts[:: decoder.rows_per_prompt]
        self.active: list[int] = prompts.tolist()
        self._may_evict = may_evict and len(prompts) > 1
        self._flags = async_flags_for(torch.device("cpu") if waits else prompts.device)
        self._finished: list[int] = []  # places in `active`
        self.evicted: list[tuple[list[int], Decoded[Any]]] = []

    def ask(self, state: State, nonfinite: Bool[Tensor, " rows"]) -> None:
        """Start to read the completion flags of the run and of every prompt."""
        done = (state.done | nonfinite.any()).view(1)
        finished = self._decoder.finished(state) if self._may_evict else None
        self._flags.ask(done if finished is None else torch.cat([done, finished]))

    def is_done(self) -> bool:
        """True if the run is known to be done."""
        flags = self._flags.newest()
        if flags is None:
            return False
        self._finished = [place for place, is_finished in enumerate(flags[1:]) if is_finished]
        return flags[0]

    @property
    def finished(self) -> int:
        """Number of finished prompts that are still in the batch."""
        return len(self._finished)

    def evict(self, before: ActiveState[State]) -> tuple[ActiveState[State], Int64[Tensor, " kept"]]:
        """Keep the results of finished prompts; returns the state of the others, and their places."""
        batch, device, finished = len(self.active), before.nonfinite.device, self._finished
        stay = sorted(set(range(batch)) - set(finished))
        state = keep_prompts(before.state, torch.tensor(finished, device=device), batch)
        self.evicted.append(self._result(state, [self.active[place] for place in finished]))
        self.active, self._finished = [self.active[place] for place in stay], []
        self._flags.forget()
        kept = torch.tensor(stay, device=device)
        state, memory, nonfinite = keep_prompts((before.state, before.memory, before.nonfinite), kept, batch)
        return ActiveState(state, memory, _keep_selection(before.selection, kept, batch), nonfinite), kept

    def results(self, state: State) -> list[tuple[list[int], Decoded[Any]]]:
        """The results of all prompts that the caller has not removed, with their indices."""
        return [*self.evicted, self._result(state, self.active)]

    def _result(self, state: State, prompts: list[int]) -> tuple[list[int], Decoded[Any]]:
        result = self._decoder.finalize(state)
        if prompts != list(range(len(prompts))):
            result = with_run_parents(result, prompts, self._decoder.rows_per_prompt)
        return prompts, result


def pays_to_evict(finished: int, prompts: int) -> bool:
    """True if `finished` of `prompts` prompts are enough to be evicted, and some go on."""
    return 0 < prompts - finished <= MOST * prompts


def can_evict(session: Session, parts: Sequence[object], memory: Memory) -> bool:
    """True if prompts can be evicted from a run.

    Args:
        session: The session of the model.
        parts: The other parts of the run: decoder, processors, criteria.
        memory: The memory of the parts.
    """
    if not isinstance(session, ShrinkingSession) or not session.can_evict:
        return False
    return whole_part(*parts) is None and can_be_split(memory)


def _keep_selection(selection: Selection, prompts: Int64[Tensor, " kept"], batch: int) -> Selection:
    """The decisions for some prompts, by their new rows."""
    rows_per_prompt = len(selection.tokens) // batch
    rows = rows_of(prompts, rows_per_prompt)
    sources = selection.source_rows
    if sources is not None:
        first = rows_of(torch.arange(len(prompts), device=rows.device), rows_per_prompt)
        first = first // rows_per_prompt * rows_per_prompt
        sources = first + sources.index_select(0, rows) % rows_per_prompt
    return Selection(selection.tokens.index_select(0, rows), sources)


class AsyncFlags(ABC):
    """Non-blocking reads of completion flags; the newest answer may be some steps old."""

    @abstractmethod
    def ask(self, flags: Bool[Tensor, " flags"]) -> None:
        """Start to read. Earlier flags are answered first."""

    @abstractmethod
    def newest(self) -> list[bool] | None:
        """The newest flags that have arrived since the last call; None if there are none."""

    @abstractmethod
    def forget(self) -> None:
        """Drop unanswered reads: the next flags have another meaning."""


@final
class ImmediateFlags(AsyncFlags):
    """Flags that the host can read without waiting.

    Example:
        >>> flags = ImmediateFlags()
        >>> flags.ask(torch.tensor([True, False]))
        >>> flags.newest(), flags.newest()
        ([True, False], None)
    """

    def __init__(self) -> None:
        self._answer: list[bool] | None = None

    @override
    def ask(self, flags: Bool[Tensor, " flags"]) -> None:
        self._answer = flags.tolist()

    @override
    def newest(self) -> list[bool] | None:
        answer, self._answer = self._answer, None
        return answer

    @override
    def forget(self) -> None:
        self._answer = None


class Copy(Protocol):
    """Flags on their way to the host."""

    def arrived(self) -> bool:
        """True if they have arrived; does not wait."""

    def wait(self) -> None:
        """Wait until they have arrived."""

    def flags(self) -> list[bool]:
        """The flags, once they have arrived."""


@final
class DeferredFlags(AsyncFlags):
    """Flags on a device that works behind the host, copied while both go on.

    The host waits only if `AHEAD` reads are unanswered, for the oldest of them.

    Args:
        copy: Starts to copy flags to the host.
    """

    def __init__(self, copy: Callable[[Tensor], Copy]) -> None:
        self._copy = copy
        self._open: deque[Copy] = deque()

    @override
    def ask(self, flags: Bool[Tensor, " flags"]) -> None:
        self._open.append(self._copy(flags))

    @override
    def newest(self) -> list[bool] | None:
        if len(self._open) >= AHEAD:
            self._open[0].wait()
        answer = None
        while self._open and self._open[0].arrived():
            answer = self._open.popleft().flags()
        return answer

    @override
    def forget(self) -> None:
        self._open.clear()


@final
class CudaCopy:
    """Flags on their way from a CUDA device, into pinned memory.

    Args:
        flags: The flags on the device.
    """

    def __init__(self, flags: Bool[Tensor, " flags"]) -> None:
        self._host = torch.empty(flags.shape, dtype=torch.bool, pin_memory=True)
        self._host.copy_(flags, non_blocking=True)
        self._event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(flags.device))

    def arrived(self) -> bool:
        """True if the device has reached the copy."""
        return bool(self._event.query())

    def wait(self) -> None:
        """Wait for the device."""
        self._event.synchronize()

    def flags(self) -> list[bool]:
        """The copied flags, as truth values on the host."""
        flags: list[bool] = self._host.tolist()
        return flags


def async_flags_for(device: torch.device) -> AsyncFlags:
    """The reader for flags on a device."""
    return DeferredFlags(CudaCopy) if device.type == "cuda" else ImmediateFlags()
