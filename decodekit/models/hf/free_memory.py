"""How much memory the machine still has to give."""

import os
from pathlib import Path

_MACHINE = Path("/proc/meminfo")
# What a container may take, and what it has taken: control groups of version 2, and of version 1.
_GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def memory_left() -> int:
    """Bytes that can be taken without swapping, at least; 0 where the system does not say.

    What the machine counts as available, or what is left of a container's limit where that is less.
    """
    return min([_of_machine(), *(left for most, taken in _GROUPS if (left := _of_group(most, taken)) >= 0)])


def _of_machine() -> int:
    """What Linux counts as available; elsewhere the free pages, which are fewer."""
    try:
        lines = _MACHINE.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024  # "MemAvailable:   21336776 kB"
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def _of_group(most: Path, taken: Path) -> int:
    """What is left of a limit; -1 where there is none."""
    try:
        return max(int(most.read_text()) - int(taken.read_text()), 0)
    except (OSError, ValueError):  # no such file, or "max"
        return -1
