"""How every benchmark measures: in one run, in turns, when the device has done what it was asked."""

import time
from collections.abc import Callable, Mapping

import torch


def wait(device: str) -> None:
    """Until the device has done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(
    run: Callable[[], object], device: str = "cpu", clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds that `run` takes.

    Args:
        run: What is timed.
        device: Where it computes.
        clock: Says the seconds.
    """
    wait(device)
    start = clock()
    run()
    wait(device)
    return clock() - start


def in_turns(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every run, the contenders in turns, so that what else the machine does hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(timed(run, device, clock))
    return seconds


def gpu_memory(run: Callable[[], object], before: int) -> float:
    """MB that a run of a contender has on the GPU at most, what it keeps between runs included.

    Args:
        run: Of a contender that has run before.
        before: Bytes that were allocated before that.
    """
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
