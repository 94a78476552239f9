"""Time and memory of decodekit and of `model.generate()` for the same tokens.

    python benchmarks/against_generate.py     # writes the "cpu" part of results/against_generate.json

Both libraries decode the same prompts with the same random model, alternating in one process. The printed
table shows the medians, their ratio, and the floor: the bytes that must be read, divided by the bandwidth
measured in the same run. The JSON file has every measurement, the device and the versions. Peak memory is the
growth of a fresh process during one run; it is measured on Linux or on CUDA.
"""

import multiprocessing
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
import typer
from command_line import Device, Note, Out, Quick, Repeats, Threads
from floor import bandwidth, bytes_read
from measuring import gpu_memory, in_turns
from record import SEED, circumstances, place, summary, write_part
from rich.console import Console
from rich.table import Table

import decodekit as dk


@dataclass(frozen=True)
class Work:
    """A workload, decoded by both libraries."""

    name: str
    prompts: int = 8
    length: int = 128
    new: int = 64
    beams: int = 1
    samples: int = 0
    bar: float = 1.0  # target: the largest allowed ratio of decodekit's time to that of `generate`


WORKS = (
    Work("greedy"),
    Work("sampling, top-p 0.9", samples=1),
    Work("8 samples a prompt", prompts=2, samples=8),
    Work("beam search, 5 beams", beams=5, bar=0.75),
)
CONTENDERS = ("generate", "decodekit")


def make_model(device: str) -> Any:  # noqa: ANN401 - a transformers model
    """A random GPT-2 of 4 layers, 256 wide, with a vocabulary of 4,096 tokens."""
    torch.manual_seed(SEED)
    config = transformers.GPT2Config(
        vocab_size=4096, n_positions=1024, n_embd=256, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=None
    )
    return transformers.GPT2LMHeadModel(config).eval().to(device)


def make_run(contender: str, work: Work, model: Any, device: str) -> Callable[[], torch.Tensor]:  # noqa: ANN401
    """A function that decodes the workload and returns the sequences."""
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(1, 4096, (work.prompts, work.length), generator=generator).to(device)
    processors = [dk.TopP(0.9)] if work.samples else []
    decoder: dk.Decoder[Any] = dk.Greedy()
    options: dict[str, Any] = {"do_sample": False}
    if work.samples:
        decoder = dk.Sample(work.samples)
        options = {"do_sample": True, "top_k": 0, "top_p": 0.9, "num_return_sequences": work.samples}
    elif work.beams > 1:
        decoder, options = dk.BeamSearch(work.beams), {"do_sample": False, "num_beams": work.beams}
    wrapped = dk.HFModel(model)

    def run() -> torch.Tensor:
        torch.manual_seed(SEED)
        if contender == "decodekit":
            return dk.decode(wrapped, ids, decoder, processors, max_new_tokens=work.new).sequences
        mask = torch.ones_like(ids)
        texts: torch.Tensor = model.generate(
            ids, attention_mask=mask, max_new_tokens=work.new, pad_token_id=0, **options
        )
        return texts

    return run


def measure(work: Work, model: Any, device: str, repeats: int) -> dict[str, list[float]]:  # noqa: ANN401
    """Seconds of every run of the alternating contenders, after one warm-up run each."""
    runs = {name: make_run(name, work, model, device) for name in CONTENDERS}
    first, second = (run() for run in runs.values())
    if not torch.equal(first, second):
        raise SystemExit(
            f"{work.name}: the libraries return different tokens, so their times cannot be compared."
        )
    return in_turns(runs, repeats, device)


def peak_memory(contender: str, work: Work, device: str, threads: int) -> float:
    """Growth of the process in one run, in MB, after the model is loaded."""
    torch.set_num_threads(threads)
    model = make_model(device)
    make_run(contender, replace(work, prompts=1, length=2, new=2), model, device)()
    if device == "cuda":
        return gpu_memory(make_run(contender, work, model, device), torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak: man 5 proc
    before = from_status("VmRSS")
    make_run(contender, work, model, device)()
    return from_status("VmHWM") - before


def from_status(entry: str) -> float:
    """Memory of this process on Linux, in MB: current (`VmRSS`) or peak (`VmHWM`)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry))
    return int(line.split()[1]) / 1e3


def in_own_process(contender: str, work: Work, device: str, threads: int) -> float:
    """`peak_memory` in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_memory, (contender, work, device, threads))


def summed_up(
    work: Work, seconds: dict[str, list[float]], memory: dict[str, float], floor: float
) -> dict[str, Any]:
    """The workload with its measurements."""
    return {
        **asdict(work),
        "seconds": {name: [round(value, 4) for value in times] for name, times in seconds.items()},
        **summary(seconds, "seconds", against="generate"),
        "floor_seconds": round(floor, 4),
        "peak_memory_mb": {name: round(value, 1) for name, value in memory.items()},
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("workload", *CONTENDERS, "floor", "ratio", "target", *(f"{name} MB" for name in CONTENDERS))
    for row in rows:
        medians, memory = row["median_seconds"], row["peak_memory_mb"]
        table.add_row(
            row["name"],
            *(f"{medians[name]:.3f} s" for name in CONTENDERS),
            f"{row['floor_seconds']:.3f} s",
            f"{row['ratio']:.2f}",
            f"{row['bar']:.2f}",
            *(f"{memory[name]:.0f}" for name in CONTENDERS),
        )
    Console(width=120).print(table)


def main(
    *,
    repeats: Repeats = 7,
    threads: Threads = 2,
    device: Device = "cpu",
    note: Note = "",
    quick: Quick = False,
    out: Out = None,
) -> None:
    """Measure, print the table and write the JSON."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    works = [replace(WORKS[-1], prompts=1, length=4, new=3)] if quick else WORKS
    model, rows = make_model(device), []
    bytes_a_second = bandwidth(device)
    for work in works:
        seconds = measure(work, model, device, 1 if quick else repeats)
        memory = {name: in_own_process(name, work, device, threads) for name in CONTENDERS}
        floor = bytes_read(model, [(work.length, work.new)] * work.prompts) / bytes_a_second
        rows.append(summed_up(work, seconds, memory, floor))
    show(rows)
    part = circumstances(device, threads, repeats, note=note) | {
        "model": "random GPT-2, 4 layers x 256, vocabulary 4096, float32",
        "bandwidth_gb_per_second": round(bytes_a_second / 1e9, 2),
        "work": rows,
    }
    write_part(place(out, "against_generate.json", quick=quick), device, part)


if __name__ == "__main__":
    typer.run(main)
