"""Free memory of the machine."""

import os
from pathlib import Path

_MACHINE = Path("/proc/meminfo")
# Limit and usage of a container, under control groups of version 2 and of version 1.
_GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def memory_left() -> int:
    """Bytes that can be allocated without swapping; 0 if the system does not report them.

    The smaller of the machine's available memory and the container's limit minus its usage.
    """
    in_groups = [_in_group(limit, usage) for limit, usage in _GROUPS]
    return min([_on_machine(), *(left for left in in_groups if left is not None)])


def _on_machine() -> int:
    """Available memory as Linux counts it; on other systems the free pages, which are fewer."""
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


def _in_group(limit: Path, usage: Path) -> int | None:
    """Memory left of a control group's limit; None without a limit."""
    try:
        return max(int(limit.read_text()) - int(usage.read_text()), 0)
    except (OSError, ValueError):  # no such file, or "max"
        return None
