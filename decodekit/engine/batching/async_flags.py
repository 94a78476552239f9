"""Whether a run is done: asked of the device, and not waited for."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, final

import torch
from jaxtyping import Bool
from torch import Tensor

# So many questions may be open; the host would otherwise run ahead of a device that is done.
AHEAD = 4


class AsyncFlags(ABC):
    """Reads a few flags from the device now and then; the newest answer may be some steps old."""

    @abstractmethod
    def ask(self, flags: Bool[Tensor, " flags"]) -> None:
        """Begins to read; what was asked before is answered first."""

    @abstractmethod
    def newest(self) -> list[bool] | None:
        """The newest answer that has arrived since the last call; None: none has."""

    @abstractmethod
    def forget(self) -> None:
        """Drops what is not answered yet: the next flags mean something else."""


@final
class ImmediateFlags(AsyncFlags):
    """For flags that the host can read without waiting: each is answered as soon as it is asked.

    Example:
        >>> answers = ImmediateFlags()
        >>> answers.ask(torch.tensor([True, False]))
        >>> answers.newest(), answers.newest()
        ([True, False], None)
    """

    def __init__(self) -> None:
        self._answer: list[bool] | None = None

    def ask(self, flags: Bool[Tensor, " flags"]) -> None:
        """Reads them."""
        self._answer = flags.tolist()

    def newest(self) -> list[bool] | None:
        """What was asked last, once."""
        answer, self._answer = self._answer, None
        return answer

    def forget(self) -> None:
        """Drops it."""
        self._answer = None


class Copy(Protocol):
    """Flags on their way to the host."""

    def arrived(self) -> bool:
        """Whether they are there; does not wait."""

    def wait(self) -> None:
        """Until they are there."""

    def flags(self) -> list[bool]:
        """The flags, which have arrived."""


@final
class DeferredFlags(AsyncFlags):
    """For flags on a device that works behind the host: copies them while both go on.

    The host waits only where `AHEAD` answers are open, for the oldest of them.

    Args:
        copy: Begins to copy flags to the host.
    """

    def __init__(self, copy: Callable[[Tensor], Copy]) -> None:
        self._copy = copy
        self._open: deque[Copy] = deque()

    def ask(self, flags: Bool[Tensor, " flags"]) -> None:
        """Begins to copy."""
        self._open.append(self._copy(flags))

    def newest(self) -> list[bool] | None:
        """The newest that has arrived."""
        if len(self._open) >= AHEAD:
            self._open[0].wait()
        answer = None
        while self._open and self._open[0].arrived():
            answer = self._open.popleft().flags()
        return answer

    def forget(self) -> None:
        """Drops what is on its way."""
        self._open.clear()


@final
class CudaCopy:
    """Flags on their way from a CUDA device, into memory that the host need not page in.

    Args:
        flags: On the device.
    """

    def __init__(self, flags: Bool[Tensor, " flags"]) -> None:
        self._host = torch.empty(flags.shape, dtype=torch.bool, pin_memory=True)
        self._host.copy_(flags, non_blocking=True)
        self._event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(flags.device))

    def arrived(self) -> bool:
        """Whether the device has come so far."""
        return bool(self._event.query())

    def wait(self) -> None:
        """Until it has."""
        self._event.synchronize()

    def flags(self) -> list[bool]:
        """The flags."""
        flags: list[bool] = self._host.tolist()
        return flags


def async_flags_for(device: torch.device) -> AsyncFlags:
    """How flags of this device are read."""
    return DeferredFlags(CudaCopy) if device.type == "cuda" else ImmediateFlags()
