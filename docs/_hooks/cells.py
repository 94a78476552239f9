# ruff: noqa: INP001 - loaded by its path, not imported
"""Parts that the tables of all benchmarks share."""

from collections.abc import Iterable, Sequence
from typing import Any

Record = dict[str, Any]


def machine(run: Record) -> str:
    """The date, the device, the versions and the note of a run."""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    note = f"; {run['note']}" if run.get("note") else ""
    return f"{run['date']}, {run['device']}, {versions}{note}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def met(ratio: float | None, most: float | None) -> str:
    """The target, and "met" or "not met" if there is a ratio; empty without a target."""
    if most is None:
        return ""
    if ratio is None:
        return f"{most:.2f}"
    return f"{most:.2f}, {'met' if ratio <= most else 'not met'}"


def spread(median: float, quartiles: Sequence[float] | None, places: int = 2) -> str:
    """A median, with the quartiles if they are known."""
    if quartiles is None or quartiles[0] == quartiles[1]:
        return f"{median:.{places}f}"
    low, high = quartiles
    return f"{median:.{places}f} ({low:.{places}f} to {high:.{places}f})"


def milliseconds(value: float) -> str:
    """A time in milliseconds, to about three digits."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"  # noqa: PLR2004


def floor_of(run: Record, key: str, unit: str) -> str:
    """A sentence with the floor of a run; empty for an old run without a floor."""
    if key not in run:
        return ""
    return f" The floor is {run[key]:.3g} {unit}, at {run['bandwidth_gb_per_second']:.1f} GB/s."
