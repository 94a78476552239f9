"""Timing for all benchmarks: alternating contenders in one process, with the device synchronized."""

import time
from collections.abc import Callable, Mapping

import torch


def wait(device: str) -> None:
    """Wait until the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(
    run: Callable[[], object], device: str = "cpu", clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds that a function takes.

    Args:
        run: The function.
        device: "cpu" or "cuda".
        clock: Returns the time in seconds.
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
    """Seconds of every run; the contenders alternate, so that other load affects all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(timed(run, device, clock))
    return seconds


def gpu_memory(run: Callable[[], object], before: int) -> float:
    """Peak GPU memory of a run, in MB, including memory that the contender keeps between runs.

    Args:
        run: The run of a contender that has run before.
        before: Bytes allocated before the first run.
    """
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
