# ruff: noqa: INP001 - loaded by its path, not imported
"""What the tables of all benchmarks have in common."""

from collections.abc import Iterable, Sequence
from typing import Any

Record = dict[str, Any]


def machine(run: Record) -> str:
    """When, where and with what it ran."""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    note = f"; {run['note']}" if run.get("note") else ""
    return f"{run['date']}, {run['device']}, {versions}{note}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def met(ratio: float | None, most: float | None) -> str:
    """What was allowed at most, and whether that was kept; nothing where nothing was set."""
    if most is None:
        return ""
    if ratio is None:
        return f"{most:.2f}"
    return f"{most:.2f}, {'met' if ratio <= most else 'not met'}"


def spread(median: float, quartiles: Sequence[float] | None, places: int = 2) -> str:
    """A median, and the quartiles where they are known."""
    if quartiles is None or quartiles[0] == quartiles[1]:
        return f"{median:.{places}f}"
    low, high = quartiles
    return f"{median:.{places}f} ({low:.{places}f} to {high:.{places}f})"


def milliseconds(value: float) -> str:
    """About three digits."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004


def floor_of(run: Record, key: str, unit: str) -> str:
    """What a run says of its floor; nothing, if it is from before there was one."""
    if key not in run:
        return ""
    return f" The floor is {run[key]:.3g} {unit}, at {run['bandwidth_gb_per_second']:.1f} GB/s."
