# ruff: noqa: INP001 - loaded by its path, not imported
"""Tables and pictures of benchmarks, generated from the recorded runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmark_tables import (
    against_generate,
    decoders,
    packed_linear,
    pictures_of_decoders,
    processors,
    step_without_model,
    throughput,
    translation,
    where_time_goes,
)
from peer_tables import peers, peers_on_gpu

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
NOT_YET = "No run is recorded yet."


def _of_file(name: str, show: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    """A function that shows a file with one run."""

    def shown() -> str:
        run = recorded(name)
        return NOT_YET if run is None else show(run)

    return shown


def _of_devices(name: str, show: Callable[[dict[str, Any]], str]) -> Callable[[], str]:
    """A function that shows a file with one run per device."""

    def shown() -> str:
        runs = recorded(name)
        return NOT_YET if runs is None else "\n\n".join(map(show, runs.values()))

    return shown


def _gpu() -> str:
    return peers_on_gpu(recorded("peers_cuda"), (recorded("step_without_model") or {}).get("cuda"))


# By marker on a page.
SHOWN: dict[str, Callable[[], str]] = {
    "against_generate": _of_devices("against_generate", against_generate),
    "processors": _of_devices("processors", processors),
    "step_without_model": _of_devices("step_without_model", step_without_model),
    "throughput": _of_devices("throughput", throughput),
    "packed_linear": _of_file("packed_linear", packed_linear),
    "peers_cpu": _of_file("peers_cpu", peers),
    "where_time_goes": _of_file("where_time_goes", where_time_goes),
    "peers_cuda": _gpu,
    "translation": _of_file("translation", translation),
    "decoders": _of_file("decoders", decoders),
    "pictures of decoders": _of_file("decoders", pictures_of_decoders),
}


def recorded(name: str) -> dict[str, Any] | None:
    """The content of a file of results; None if the file does not exist."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def on_page_markdown(markdown: str, **_: Any) -> str:  # noqa: ANN401 - the signature of mkdocs
    """Replace each marker by the tables and pictures of its recorded run."""
    for name, show in SHOWN.items():
        marker = f"<!-- {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, show())
    return markdown
