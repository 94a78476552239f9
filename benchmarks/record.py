"""Parts that the JSON files of all benchmarks share: date, device, versions, medians and quartiles."""

import json
import os
import platform
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

SEED = 0
RESULTS = Path(__file__).parent / "results"


def circumstances(
    device: str, threads: int, repeats: int, packages: Iterable[str] = (), note: str = ""
) -> dict[str, Any]:
    """The first fields of every JSON file.

    Args:
        device: "cpu" or "cuda".
        threads: CPU threads.
        repeats: Timed runs of each contender.
        packages: Further packages, besides torch and transformers; their versions are listed if installed.
        note: A note about this run.
    """
    names = ["torch", "transformers", *(package for package in packages if find_spec(package))]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": machine(device, threads),
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
        "seed": SEED,
        "repeats": repeats,
        "note": note,
    }


def machine(device: str, threads: int) -> str:
    """A description of the device."""
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    used = f"{threads} thread{'s' * (threads > 1)} of {os.cpu_count()}"
    return f"{used}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def summary(
    times: Mapping[str, Sequence[float]], unit: str, against: str | None = None, ours: str = "decodekit"
) -> dict[str, Any]:
    """Medians, quartiles and, if both were measured, the ratio of two medians.

    Args:
        times: Times of each contender.
        unit: Unit of the times, the suffix of the field names: "seconds", "s" or "ms".
        against: The contender in the denominator of the ratio; None for no ratio.
        ours: The contender in the numerator of the ratio.
    """
    medians = {name: statistics.median(values) for name, values in times.items()}
    found: dict[str, Any] = {
        f"median_{unit}": {name: round(value, 4) for name, value in medians.items()},
        f"quartiles_{unit}": {name: quartiles(values) for name, values in times.items()},
    }
    if against in medians and ours in medians:
        found["ratio"] = round(medians[ours] / medians[against], 3)
    return found


def quartiles(values: Sequence[float]) -> list[float]:
    """The first and the third quartile; a single value is both."""
    if len(values) == 1:
        return [round(values[0], 4)] * 2
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [round(low, 4), round(high, 4)]


def place(out: Path | None, name: str, *, quick: bool) -> Path:
    """The path of the JSON file: the given one, else the results, or a temporary folder for a quick run.

    Args:
        out: The given path, or None.
        name: Name of the file.
        quick: True for a quick run, which measures nothing.
    """
    if out is not None:
        return out
    return (Path(tempfile.mkdtemp()) if quick else RESULTS) / name


def write(out: Path, record: Mapping[str, Any]) -> None:
    """Write the whole file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"written: {out}")


def write_part(out: Path, device: str, part: Mapping[str, Any]) -> None:
    """Write the part of one device, and keep the parts of other devices."""
    write(out, (json.loads(out.read_text()) if out.exists() else {}) | {device: part})
