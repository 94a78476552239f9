"""What a step of every processor costs, next to the class of transformers that does the same.

    python benchmarks/processors.py            # writes the "cpu" part of benchmarks/results/processors.json

64 rows are in the middle of their run: 496 tokens of a prompt, 16 said, 16 to come. Ours and theirs see the
same random scores in one run, in turns; where their scores should be equal and are not there is no result. A
table shows the medians and their ratio; the JSON has the quartiles, the device and the versions.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from processor_cases import CASES, OTHERS, Case, Setting

SEED = 0
RESULTS = Path(__file__).parent / "results"
VOCABULARIES = (50257, 151936)  # of GPT-2 and of Qwen
ROWS, PROMPT, SAID, TO_COME = 64, 496, 16, 16

LINE = "{:40} {:>18} {:>16} {:>13} {:>7}"

# None: with the text as it is, else with one of the other last tokens.
Step = Callable[[int | None], torch.Tensor]


def our_steps(case: Case, setting: Setting) -> Step:
    """A function that makes one step after the tokens that were said; its memory goes on."""
    processor, history = case.ours(setting), setting.history()
    memory = processor.init(history)
    for token in setting.tokens.T[setting.prompt :]:
        if memory != ():
            _, memory = processor.apply(history, setting.scores, memory)
        history = history.append(token)
    columns = torch.arange(setting.capacity) == setting.length - 1
    ends = torch.where(columns.to(history.tokens.device), setting.others[..., -1:], history.tokens)
    histories = {None: history} | {n: replace(history, tokens=tokens) for n, tokens in enumerate(ends)}

    def step(number: int | None) -> torch.Tensor:
        nonlocal memory
        scores, memory = processor.apply(histories[number], setting.scores, memory)
        return scores

    return step


def their_steps(case: Case, setting: Setting) -> Step | None:
    """The same for the class of transformers, if there is one."""
    if case.theirs is None:
        return None
    processor = case.theirs(setting)
    if case.theirs_remembers:
        for length in range(setting.prompt, setting.length):
            processor(setting.tokens[:, :length], setting.scores)
    texts = {None: setting.tokens} | dict(enumerate(setting.others))
    return lambda number: processor(texts[number], setting.scores)


def contenders(case: Case, setting: Setting) -> dict[str, Step]:
    """Who is measured, after one step each: it warms up, and shows that both do the same."""
    ours, theirs = our_steps(case, setting), their_steps(case, setting)
    first = ours(None)
    if theirs is None:
        return {"decodekit": ours}
    if case.equal and not torch.equal(theirs(None), first):
        raise SystemExit(f"{case.name}: the scores differ, so the times mean nothing.")
    return {"transformers": theirs, "decodekit": ours}


def measure(steps: dict[str, Step], device: str, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every step, the contenders in turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(repeats):
        for name, step in steps.items():
            wait(device)
            start = time.perf_counter()
            step(number % OTHERS)
            wait(device)
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def wait(device: str) -> None:
    """Until the device has done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, quartiles and, where there are two, the ratio of the medians."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    quartiles = {
        name: statistics.quantiles(values, n=4, method="inclusive") for name, values in times.items()
    }
    spread = {name: [round(low, 4), round(high, 4)] for name, (low, _, high) in quartiles.items()}
    found = {"median_ms": {name: round(value, 4) for name, value in medians.items()}, "quartiles_ms": spread}
    if len(medians) == 1:
        return found
    return found | {"ratio": round(medians["decodekit"] / medians["transformers"], 3)}


def main(
    repeats: Annotated[int, typer.Option(help="Timed steps of each contender.")] = 15,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    device: Annotated[str, typer.Option(help="Where to run: cpu or cuda.")] = "cpu",
    only: Annotated[str, typer.Option(help="Only cases whose name begins so; writes nothing.")] = "",
    out: Annotated[Path, typer.Option(help="The JSON file; other devices' parts of it stay.")] = (
        RESULTS / "processors.json"
    ),
) -> None:
    """Measure, print the table and write the JSON."""
    torch.set_num_threads(threads)
    columns = ("processor", "rows x vocabulary", "transformers ms", "decodekit ms", "ratio")
    print(LINE.format(*columns))
    cases = []
    for case in (case for case in CASES if case.name.startswith(only)):
        work: dict[str, Any] = {}
        for vocab in VOCABULARIES:
            setting = Setting.random(
                case.rows or ROWS, vocab, PROMPT, SAID, TO_COME, device=device, seed=SEED
            )
            with torch.inference_mode():
                found = summary(measure(contenders(case, setting), device, repeats))
            work[str(vocab)] = found
            medians = found["median_ms"]
            theirs, ratio = (
                (f"{medians['transformers']:.2f}", f"{found['ratio']:.2f}")
                if "ratio" in found
                else ("-", "-")
            )
            shape = f"{setting.rows} x {vocab}"
            print(LINE.format(case.name, shape, theirs, f"{medians['decodekit']:.2f}", ratio), flush=True)
        cases.append({"name": case.name, "rows": case.rows or ROWS, "vocabularies": work})
    if not only:
        write(out, device, threads, repeats, cases)


def write(out: Path, device: str, threads: int, repeats: int, cases: list[dict[str, Any]]) -> None:
    """The device's part of the JSON."""
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{threads} threads, {platform.machine()}"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    record = json.loads(out.read_text()) if out.exists() else {}
    record[device] = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": machine,
        "versions": versions | {"python": platform.python_version()},
        "seed": SEED,
        "repeats": repeats,
        "rows": ROWS,
        "length": PROMPT + SAID,
        "cases": cases,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
