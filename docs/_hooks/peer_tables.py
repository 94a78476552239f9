# ruff: noqa: INP001 - loaded by its path, not imported
"""Tables and pictures of the comparison with other libraries, on the CPU and on a GPU."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from bars import bars
from cells import Record, machine, met, spread, table

NAMES = {
    "generate": "`generate()`",
    "compiled": "`generate()`, static cache, compiled",
    "ctranslate2": "CTranslate2",
    "vllm": "vLLM",
    "decodekit": "decodekit",
    "floor": "floor",
}
NO_GPU = "No GPU was available for measurements. The table lists the targets only."
BARS = ("workload", "decodekit relative to", "quantity", "ratio", "target")
_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _works() -> ModuleType:
    """The module `benchmarks/works.py`, with the workloads and their targets."""
    spec = importlib.util.spec_from_file_location("works", _BENCHMARKS / "works.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def peers(run: Record) -> str:
    """Times of all libraries, then the ratios and targets, then a picture per workload."""
    names = [name for name in NAMES if any(name in work["median_seconds"] for work in run["work"])]
    models = "; ".join(f"{name}: {words}" for name, words in run["models"].items())
    return "\n".join(
        [
            f"{machine(run)}; {models}; medians of {run['repeats']} runs, with quartiles, in seconds:",
            "",
            table(
                ["workload", *(NAMES[name] for name in names), "floor", "same texts"],
                [[work["name"], *_seconds(work, names), _same(work)] for work in run["work"]],
            ),
            "",
            table(
                BARS,
                [row for work in run["work"] for row in _bars(work, work)],
            ),
            "",
            *_first_uses(run),
            *_memory(run),
            *(bars(work["name"], _times(work), "s") for work in run["work"]),
        ]
    )


def peers_on_gpu(run: Record | None, step: Record | None) -> str:
    """The same for a GPU, with a step without the model; cells without a measurement are empty.

    Args:
        run: The run of `peers.py`, or None.
        step: The run of `step_without_model.py`, or None.
    """
    works = _works()
    lines = (
        [*(row for work in works.CUDA_WORKS for row in _bars(_described(work), None))] if run is None else []
    )
    every = table(BARS, [*lines, *_steps(works, step)])
    if run is None:
        return f"{NO_GPU}\n\n{every}" if step is None else every
    return f"{peers(run)}\n\n{every}"


def _described(work: Any) -> Record:  # noqa: ANN401 - a Work
    return {"name": work.name, "bars": work.bars, "cache_bar": work.cache_bar}


def _times(work: Record) -> dict[str, float]:
    return work["median_seconds"] | {"floor": work["floor_seconds"]}


def _seconds(work: Record, names: list[str]) -> Iterator[str]:
    medians, quartiles = work["median_seconds"], work["quartiles_seconds"]
    for name in names:
        yield spread(medians[name], quartiles[name]) if name in medians else "-"
    yield f"{work['floor_seconds']:.2g}"


def _same(work: Record) -> str:
    """The fraction of texts that equal those of `generate()`, for each library."""
    shares = {name: share for name, share in work["same_texts"].items() if name != "generate"}
    if all(share == 1 for share in shares.values()):
        return "all"
    told = {name: "not comparable" if share is None else f"{share:.0%}" for name, share in shares.items()}
    return ", ".join(f"{NAMES[name]} {said}" for name, said in told.items())


def _bars(work: Record, found: Record | None) -> Iterator[list[str]]:
    """A line for every target of a workload, and for every ratio without a target."""
    ratios: dict[str, float] = {} if found is None else found["ratios"]
    for name in dict.fromkeys([*work["bars"], *ratios]):
        ratio = ratios.get(name)
        yield [work["name"], NAMES[name], "time", _ratio(ratio), met(ratio, work["bars"].get(name))]
    if found is not None or work["cache_bar"] is not None:
        ratio = None if found is None else found["cache_ratio"]
        most = met(ratio, work["cache_bar"])
        yield [work["name"], NAMES["generate"], "cache memory", _ratio(ratio), most]


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"**{ratio:.2f}**"


def _first_uses(run: Record) -> Iterator[str]:
    """A list with the time of the first use of each library that compiles or captures."""
    names = ("compiled", *(["decodekit"] if run.get("captured") else []))
    lines: list[str] = []
    for work in run["work"]:
        seconds = work["first_use_seconds"]
        times = [f"{NAMES[name]} {seconds[name]:.0f} s" for name in names if name in seconds]
        lines += [f"* {work['name']}: {', '.join(times)}"] if times else []
    if lines:
        yield "\n".join(["Time of the first use, with compilation or capture:", "", *lines, ""])


def _memory(run: Record) -> Iterator[str]:
    """A table of peak GPU memory, if it was measured."""
    works = [work for work in run["work"] if work.get("peak_memory_mb")]
    names = [name for name in NAMES if any(name in work["peak_memory_mb"] for work in works)]
    if works:
        rows = [
            [
                work["name"],
                *(
                    f"{work['peak_memory_mb'][name]:.0f}" if name in work["peak_memory_mb"] else "-"
                    for name in names
                ),
            ]
            for work in works
        ]
        yield table(["peak memory besides the model, MB", *(NAMES[name] for name in names)], rows) + "\n"


def _steps(works: ModuleType, step: Record | None) -> Iterator[list[str]]:
    """The lines of a step without the model that have a target."""
    prompts, rows = works.STEP_ROWS
    name = f"a step without the model, {prompts * rows} rows x {works.STEP_VOCABULARY:,} tokens"
    if step is None:
        yield [name, NAMES["generate"], "time", "", met(None, works.STEP_BARS["cuda"])]
        return
    for work in step["work"]:
        if work["bar"] is not None:
            ratio = work["ratio"]
            yield [work["name"], NAMES["generate"], "time", _ratio(ratio), met(ratio, work["bar"])]
