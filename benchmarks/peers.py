"""Time and memory of decodekit, of other libraries, and the floor of the time.

    python benchmarks/peers.py                    # writes benchmarks/results/peers_cpu.json
    python benchmarks/peers.py --device cuda      # writes benchmarks/results/peers_cuda.json
    python benchmarks/peers.py --only "S, 4 x 512" --no-compiled

The libraries decode the same prompts with the same random model, alternating in one process:
`model.generate()`; `generate()` with a static cache and `torch.compile`, with the time of its first use;
CTranslate2 and, on a GPU, vLLM, if they are installed (`pip install ctranslate2 vllm`); and decodekit. In
float32, on the CPU, the tokens of decodekit must equal those of `generate()`, or the script stops without a
result. In bfloat16, on a GPU, many tokens are tied and kernels round differently, so the table shows the
fraction of equal texts. It also shows the floor: the bytes that must be read (all weights once per step, and
the keys and values of live tokens), divided by the bandwidth measured in the same run; the largest size of
the cache; and, on a GPU, the peak memory of each library.
"""

import gc
import time
from dataclasses import asdict
from itertools import groupby
from typing import Annotated, Any

import torch
import transformers
import typer
from command_line import Capture, Device, Note, Out, Quick, Repeats, Threads
from contenders import PEERS, Bench, Contender
from floor import bandwidth, bytes_a_token, bytes_read
from measuring import gpu_memory, in_turns, wait
from random_models import DTYPES, described
from record import circumstances, place, summary, write
from rich.console import Console
from rich.table import Table
from works import WORKS, Work

from decodekit.engine.decode import decode_steps

OWN_WEIGHTS = "has random weights of its own (load_format=dummy), so its texts cannot be compared"
NO_MEMORY = {"ctranslate2", "vllm"}  # their memory is not allocated by torch


def cache_bytes(bench: Bench, work: Work) -> dict[str, int]:
    """Largest size of keys and values: at the end of `generate`, and after any step of decodekit."""
    most = 0
    decoder = bench.decoder(work)
    for snapshot in decode_steps(
        bench.wrapped, bench.prompts(work), decoder, max_new_tokens=work.new, end_ids=()
    ):
        session: Any = snapshot.session
        layers = session._cache.content.layers  # noqa: SLF001 - there is no public name for it
        most = max(most, sum(buffer.nbytes for layer in layers for buffer in layer._buffers))  # noqa: SLF001
    theirs = work.rows * (work.length + work.new - 1) * bytes_a_token(bench.model)
    return {"generate": theirs, "decodekit": most}


def measure(bench: Bench, work: Work, repeats: int, *, compiled: bool) -> dict[str, Any]:
    """The first use of each library, its texts, and then the seconds of alternating runs."""
    first_use, said, memory = {}, {}, {}
    runs: dict[str, Contender] = {}
    for peer in PEERS:
        if peer == "compiled" and not compiled:
            continue
        before = torch.cuda.memory_allocated() if bench.device == "cuda" else 0
        run = bench.run_of(peer, work)
        if run is None:
            continue
        runs[peer] = run
        start = time.perf_counter()
        said[peer] = run()
        wait(bench.device)
        first_use[peer] = round(time.perf_counter() - start, 3)
        if bench.device == "cuda" and peer not in NO_MEMORY:
            memory[peer] = round(gpu_memory(run, before), 1)
    found: dict[str, Any] = {"same_texts": same_texts(bench, work, said)}
    if bench.vllm_weights_are_its_own:
        found["remarks"] = {"vllm": OWN_WEIGHTS}
    seconds = in_turns(runs, repeats, bench.device)
    return found | {
        "seconds": {peer: [round(value, 4) for value in values] for peer, values in seconds.items()},
        "first_use_seconds": first_use,
        "peak_memory_mb": memory,
    }


def same_texts(bench: Bench, work: Work, said: dict[str, list[list[int]]]) -> dict[str, float | None]:
    """The fraction of texts that equal those of `generate`; None if they cannot be compared."""
    theirs = said["generate"]
    same: dict[str, float | None] = {
        peer: sum(one == other for one, other in zip(texts, theirs, strict=True)) / len(theirs)
        for peer, texts in said.items()
    }
    if bench.vllm_weights_are_its_own:
        same["vllm"] = None
    if bench.model.dtype == torch.float32 and same["decodekit"] != 1:
        raise SystemExit(
            f"{work.name}: the libraries return different tokens, so their times cannot be compared."
        )
    return same


def summed_up(bench: Bench, work: Work, found: dict[str, Any], bytes_a_second: float) -> dict[str, Any]:
    """The workload with its measurements, medians, ratios and floors."""
    floor = bytes_read(bench.model, [(work.length, work.new)] * work.prompts) / bytes_a_second
    told = summary(found["seconds"], "seconds", against="generate")
    medians = told["median_seconds"]
    ratios = {peer: medians["decodekit"] / value for peer, value in medians.items() if peer != "decodekit"}
    ratios["floor"] = medians["decodekit"] / floor
    memory = cache_bytes(bench, work)
    return {
        "name": work.name,
        **asdict(work),
        **found,
        **told,
        "ratios": {peer: round(value, 3) for peer, value in ratios.items()},
        "floor_seconds": round(floor, 5),
        "bandwidth_gb_per_second": round(bytes_a_second / 1e9, 2),
        "cache_bytes": memory,
        "cache_ratio": round(memory["decodekit"] / memory["generate"], 3),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("workload", *PEERS, "floor", "ratios (targets)", "same texts", "cache")
    for row in rows:
        medians, ratios, cache_bar = row["median_seconds"], row["ratios"], row["cache_bar"]
        same = row["same_texts"]["decodekit"]
        table.add_row(
            row["name"],
            *(f"{medians[peer]:.3g} s" if peer in medians else "" for peer in PEERS),
            f"{row['floor_seconds']:.3g} s",
            ", ".join(
                f"{peer} {ratios[peer]:.2f} ({bar})" for peer, bar in row["bars"].items() if peer in ratios
            ),
            f"{same:.0%}",
            f"{row['cache_ratio']:.2f}" + ("" if cache_bar is None else f" ({cache_bar})"),
        )
    Console(width=170).print(table)


def main(
    *,
    repeats: Repeats = 5,
    threads: Threads = 2,
    device: Device = "cpu",
    only: Annotated[str, typer.Option(help="Run only workloads whose names begin with this.")] = "",
    compiled: Annotated[
        bool | None,
        typer.Option(
            help="Include generate with a static cache and torch.compile. Default: not with --quick."
        ),
    ] = None,
    capture: Capture = True,
    note: Note = "",
    quick: Quick = False,
    out: Out = None,
) -> None:
    """Measure, print the table and write the JSON."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    # A quick run uses the CPU, with the workloads and the dtype of the given device.
    where, dtype = "cpu" if quick else device, DTYPES[device]
    is_compiled = not quick if compiled is None else compiled
    works = [work for work in WORKS[device] if work.name.startswith(only)]
    rows = []
    for name, several in groupby(works, lambda work: work.model):
        bench = Bench(name, where, dtype, threads, capture=capture, quick=quick)
        for work in several:
            small = work.in_small() if quick else work
            found = measure(bench, small, 1 if quick else repeats, compiled=is_compiled)
            rows.append(summed_up(bench, small, found, bandwidth(where)))
        del bench  # frees its memory before the next one is created
        gc.collect()
        torch.cuda.empty_cache()  # has no effect without a GPU
    show(rows)
    packages = ("ctranslate2", "vllm") if device == "cuda" else ("ctranslate2",)
    record = circumstances(where, threads, repeats, packages, note) | {
        "models": {
            name: described(name, dtype, quick=quick) for name in dict.fromkeys(work.model for work in works)
        },
        "captured": capture,
        "quick": quick,
        "work": rows,
    }
    write(place(out, f"peers_{device}.json", quick=quick), record)


if __name__ == "__main__":
    typer.run(main)
