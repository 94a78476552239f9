"""decodekit against `model.generate()`: the same tokens, in how much of its time and memory?

    python benchmarks/against_generate.py            # writes benchmarks/results/against_generate.json

Both decode the same prompts with the same random model in one run, in turns. A table shows the medians
and their ratio; the JSON has every measurement, the device and the versions. Peak memory is what the
process grew by in a run of its own: on Linux, or on CUDA.
"""

import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table

import decodekit as dk

SEED = 0
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Work:
    """One thing to be decoded in two ways."""

    name: str
    prompts: int = 8
    length: int = 128
    new: int = 64
    beams: int = 1
    samples: int = 0
    bar: float = 1.0  # decodekit's share of generate's time, at most


WORKS = (
    Work("greedy"),
    Work("sampling, top-p 0.9", samples=1),
    Work("8 samples a prompt", prompts=2, samples=8),
    Work("beam search, 5 beams", beams=5, bar=0.75),
)
CONTENDERS = ("generate", "decodekit")


def make_model(device: str) -> Any:  # noqa: ANN401 - a transformers model
    """A random GPT-2 of 4 layers, 256 wide, over 4,096 tokens."""
    torch.manual_seed(SEED)
    config = transformers.GPT2Config(
        vocab_size=4096, n_positions=1024, n_embd=256, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=None
    )
    return transformers.GPT2LMHeadModel(config).eval().to(device)


def make_run(contender: str, work: Work, model: Any, device: str) -> Callable[[], torch.Tensor]:  # noqa: ANN401
    """A function that does the work and returns the sequences."""
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
        return model.generate(ids, attention_mask=mask, max_new_tokens=work.new, pad_token_id=0, **options)

    return run


def wait(device: str) -> None:
    """Until the device has done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(work: Work, model: Any, device: str, repeats: int) -> dict[str, list[float]]:  # noqa: ANN401
    """Seconds of every run, the contenders in turns, after one run each to warm up."""
    runs = {name: make_run(name, work, model, device) for name in CONTENDERS}
    first, second = (run() for run in runs.values())
    if not torch.equal(first, second):
        raise SystemExit(f"{work.name}: the tokens differ, so the times mean nothing.")
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(repeats):
        for name, run in runs.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(contender: str, work: Work, device: str, threads: int) -> float:
    """MB that one run adds to what the process had with the model loaded."""
    torch.set_num_threads(threads)
    model = make_model(device)
    warm = Work(work.name, prompts=1, length=2, new=2, beams=work.beams, samples=work.samples)
    make_run(contender, warm, model, device)()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        make_run(contender, work, model, device)()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: man 5 proc
    before = from_status("VmRSS")
    make_run(contender, work, model, device)()
    return from_status("VmHWM") - before


def from_status(entry: str) -> float:
    """MB that Linux says this process has (`VmRSS`) or had at most (`VmHWM`)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry))
    return int(line.split()[1]) / 1e3


def in_own_process(contender: str, work: Work, device: str, threads: int) -> float:
    """`peak_memory`, where nothing else has been."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak_memory, (contender, work, device, threads))


def main(
    repeats: Annotated[int, typer.Option(help="Timed runs of each contender.")] = 7,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    device: Annotated[str, typer.Option(help="Where to run: cpu or cuda.")] = "cpu",
    out: Annotated[Path, typer.Option(help="The JSON file.")] = RESULTS / "against_generate.json",
) -> None:
    """Measure, print the table and write the JSON."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    model = make_model(device)
    table = Table("work", "generate", "decodekit", "ratio", "bar", "generate MB", "decodekit MB")
    rows = []
    for work in WORKS:
        seconds = measure(work, model, device, repeats)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        memory = {name: in_own_process(name, work, device, threads) for name in CONTENDERS}
        ratio = medians["decodekit"] / medians["generate"]
        rows.append(
            {
                **asdict(work),
                "seconds": {name: [round(value, 4) for value in times] for name, times in seconds.items()},
                "median_seconds": {name: round(value, 4) for name, value in medians.items()},
                "ratio": round(ratio, 3),
                "peak_memory_mb": {name: round(value, 1) for name, value in memory.items()},
            }
        )
        table.add_row(
            work.name,
            *(f"{medians[name]:.3f} s" for name in CONTENDERS),
            f"{ratio:.2f}",
            f"{work.bar:.2f}",
            *(f"{memory[name]:.0f}" for name in CONTENDERS),
        )
    Console(width=110).print(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{threads} threads, {platform.machine()}"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": machine,
        "versions": versions | {"python": platform.python_version()},
        "model": "random GPT-2, 4 layers x 256, vocabulary 4096, float32",
        "seed": SEED,
        "repeats": repeats,
        "work": rows,
    }
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
