# ruff: noqa: INP001 - loaded by its path, not imported
"""Benchmark tables, made from the recorded runs: no number is copied by hand."""

import json
from pathlib import Path
from typing import Any

_RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
_AGAINST_GENERATE = "<!-- against_generate -->"


def on_page_markdown(markdown: str, **_: Any) -> str:  # noqa: ANN401 - the signature of mkdocs
    """Replaces the marker by the table of the recorded run, if there is one."""
    if _AGAINST_GENERATE not in markdown:
        return markdown
    return markdown.replace(_AGAINST_GENERATE, _against_generate(_RESULTS / "against_generate.json"))


def _against_generate(path: Path) -> str:
    if not path.exists():
        return "No run is recorded yet."
    run = json.loads(path.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    lines = [
        f"{run['date']}, {run['device']}, {versions}; {run['model']}; medians of {run['repeats']} runs:",
        "",
        "| work | prompts of tokens + new | `generate()` | decodekit | ratio | at most | peak memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for work in run["work"]:
        seconds, memory = work["median_seconds"], work["peak_memory_mb"]
        lines.append(
            f"| {work['name']} | {work['prompts']} of {work['length']} + {work['new']} "
            f"| {seconds['generate']:.3f} s | {seconds['decodekit']:.3f} s "
            f"| **{work['ratio']:.2f}** | {work['bar']:.2f} "
            f"| {memory['generate']:.0f} → {memory['decodekit']:.0f} |"
        )
    return "\n".join(lines)
