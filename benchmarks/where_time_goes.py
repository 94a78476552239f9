"""The parts of decodekit's time, in the workloads of `peers.py`.

    python benchmarks/where_time_goes.py      # writes benchmarks/results/where_time_goes.json

Each workload of `peers.py` is decoded in the same way. The first runs are timed in three parts: the pass over
the prompts, the passes after it, and the rest, which is the decoder with its state. The last run uses torch's
profiler, which splits the passes into linear layers, attention, all other operations, and time outside of
operations (Python and torch's dispatcher). The printed table also shows the floor of the linear layers: the
time to read all weights once per step, or to multiply them with every row if that takes longer, at the speeds
measured in the same run.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from time import perf_counter
from typing import Annotated, Any

import torch
import transformers
import typer
from command_line import Note, Out, Quick, Repeats, Threads
from contenders import Bench
from floor import bandwidth, bytes_a_step, multiplications
from random_models import described
from record import circumstances, place, quartiles, write
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function
from works import CPU_WORKS, Work

import decodekit as dk

PARTS = ("prompt", "linear layers", "attention", "other operations", "no operation", "decoder")
_LINEAR = ("linear", "addmm", "addmv", "mm", "gemm")
_ADVANCE = "a pass of the model"


@dataclass
class Watched:
    """A model that measures its own time, and marks its passes for the profiler."""

    model: dk.HFModel
    prompt: float = 0.0
    passes: float = 0.0
    number: int = field(default=0)

    def start_captured(self, prompt: dk.Prompt, **sizes: Any) -> tuple["WatchedSession", torch.Tensor]:  # noqa: ANN401
        """Start the model, timed."""
        return self._timed(self.model.start_captured, prompt, sizes)

    def start(self, prompt: dk.Prompt, **sizes: Any) -> tuple["WatchedSession", torch.Tensor]:  # noqa: ANN401
        """Start the model, timed."""
        return self._timed(self.model.start, prompt, sizes)

    def _timed(
        self, start: Callable[..., Any], prompt: dk.Prompt, sizes: dict[str, Any]
    ) -> tuple["WatchedSession", torch.Tensor]:
        begun = perf_counter()
        session, logits = start(prompt, **sizes)
        self.prompt += perf_counter() - begun
        return WatchedSession(session, self), logits


@dataclass
class WatchedSession:
    """A session whose passes are timed."""

    session: dk.Session
    watched: Watched

    def advance(self, tokens: torch.Tensor, source_rows: torch.Tensor | None) -> torch.Tensor:
        """Advance the session, timed."""
        begun = perf_counter()
        with record_function(_ADVANCE):
            logits = self.session.advance(tokens, source_rows)
        self.watched.passes += perf_counter() - begun
        self.watched.number += 1
        return logits


def decode(bench: Bench, work: Work) -> tuple[Watched, float]:
    """A run, and its time in seconds."""
    watched = Watched(bench.wrapped)
    torch.manual_seed(0)
    prompts, decoder = bench.prompts(work), bench.decoder(work)
    begun = perf_counter()
    dk.decode(watched, prompts, decoder, max_new_tokens=work.new, end_ids=(), capture=True)
    return watched, perf_counter() - begun


def shares(bench: Bench, work: Work) -> dict[str, float]:
    """Fractions of the passes in each kind of operation, and in none."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        decode(bench, work)
    events = list(seen.events() or ())
    passes = sorted((e.time_range.start, e.time_range.end) for e in events if e.name == _ADVANCE)
    spent = {"linear layers": 0.0, "attention": 0.0, "other operations": 0.0}
    place = 0
    for event in sorted(events, key=lambda event: event.time_range.start):
        while place < len(passes) and passes[place][1] < event.time_range.start:
            place += 1
        if place == len(passes) or event.time_range.start < passes[place][0] or event.name == _ADVANCE:
            continue
        spent[kind_of(event.name)] += event.self_cpu_time_total
    whole = sum(end - start for start, end in passes)
    found = {kind: value / whole for kind, value in spent.items()}
    return found | {"no operation": 1 - sum(found.values())}


def kind_of(operation: str) -> str:
    """The kind of an operation, by its name."""
    name = operation.partition("::")[2]
    if "attention" in name:
        return "attention"
    return "linear layers" if any(word in name for word in _LINEAR) else "other operations"


def measure(bench: Bench, work: Work, repeats: int) -> dict[str, Any]:
    """Seconds of each part, medians of several runs, and the floor of the linear layers."""
    decode(bench, work)
    runs = [decode(bench, work) for _ in range(repeats)]
    split = shares(bench, work)
    passes = statistics.median(watched.passes for watched, _ in runs)
    parts = {
        "prompt": statistics.median(watched.prompt for watched, _ in runs),
        **{kind: share * passes for kind, share in split.items()},
        "decoder": statistics.median(whole - watched.prompt - watched.passes for watched, whole in runs),
    }
    wholes = [whole for _, whole in runs]
    bytes_a_second, products_a_second = bandwidth(), multiplications()
    read, steps = bytes_a_step(bench.model), runs[0][0].number
    reading = steps * read / bytes_a_second
    multiplying = steps * work.rows * read / bench.model.dtype.itemsize / products_a_second
    return {
        "name": work.name,
        "median_seconds": round(statistics.median(wholes), 4),
        "quartiles_seconds": quartiles(wholes),
        "parts_seconds": {part: round(parts[part], 4) for part in PARTS},
        "floor_seconds": {"reading": round(reading, 4), "multiplying": round(multiplying, 4)},
        "bandwidth_gb_per_second": round(bytes_a_second / 1e9, 2),
        "multiplications_g_per_second": round(products_a_second / 1e9, 2),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("workload", "seconds", *PARTS, "floor of linear layers")
    for row in rows:
        parts = (f"{row['parts_seconds'][part]:.3f}" for part in PARTS)
        table.add_row(
            row["name"], f"{row['median_seconds']:.3f}", *parts, f"{max(row['floor_seconds'].values()):.3f}"
        )
    Console(width=170).print(table)


def main(
    *,
    repeats: Repeats = 5,
    threads: Threads = 2,
    only: Annotated[str, typer.Option(help="Run only workloads whose names begin with this.")] = "",
    note: Note = "",
    quick: Quick = False,
    out: Out = None,
) -> None:
    """Measure, print the table and write the JSON."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    works = [work for work in CPU_WORKS if work.name.startswith(only)]
    rows = []
    for name, several in groupby(works, lambda work: work.model):
        bench = Bench(name, "cpu", torch.float32, threads, quick=quick)
        for work in several:
            small = work.in_small() if quick else work
            rows.append(measure(bench, small, 1 if quick else repeats))
    show(rows)
    record = circumstances("cpu", threads, repeats, note=note) | {
        "models": {
            name: described(name, torch.float32, quick=quick)
            for name in dict.fromkeys(w.model for w in works)
        },
        "work": rows,
    }
    write(place(out, "where_time_goes.json", quick=quick), record)


if __name__ == "__main__":
    typer.run(main)
