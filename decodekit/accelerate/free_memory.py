"""Free memory of the machine or its container."""

import os
from pathlib import Path

_MACHINE = Path("/proc/meminfo")
# The limit of a container and its usage: control groups of version 2, and of version 1.
_GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def free_memory() -> int:
    """Bytes that can be allocated without swapping, at least; 0 where the system does not report them.

    This is the smaller of the machine's available memory and the rest of the container's limit.
    """
    groups = (_of_group(limit, usage) for limit, usage in _GROUPS)
    return min([_of_machine(), *(free for free in groups if free >= 0)])


def _of_machine() -> int:
    """Available memory on Linux; elsewhere the free pages, which are fewer."""
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


def _of_group(limit: Path, usage: Path) -> int:
    """The rest of a control group's limit; -1 if it has none."""
    try:
        return max(int(limit.read_text()) - int(usage.read_text()), 0)
    except (OSError, ValueError):  # no such file, or "max"
        return -1
