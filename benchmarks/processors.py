"""Time of a step of every processor, and of the class of transformers with the same effect.

    python benchmarks/processors.py            # writes the "cpu" part of benchmarks/results/processors.json

64 rows are in the middle of a run, with 496 tokens of a prompt, 16 new tokens, and room for 16 more. The
processors of both libraries read the same random scores, alternating in one process. If two processors that
must be equal return different scores, the script stops without a result. The printed table shows the medians
and their ratio. The JSON file has the quartiles, the device, the versions, and the floor: the time to read
the scores once, at the bandwidth measured in the same run.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import torch
import typer
from command_line import Device, Note, Out, Quick, Repeats, Threads
from floor import bandwidth
from measuring import timed
from processor_cases import CASES, Case
from processor_setting import OTHERS, Setting
from record import SEED, circumstances, place, summary, write_part


@dataclass(frozen=True)
class Sizes:
    """Sizes of the inputs: rows, vocabularies, and columns of the text."""

    rows: int = 64
    vocabularies: tuple[int, ...] = (50257, 151936)  # GPT-2 and Qwen
    prompt: int = 496
    said: int = 16
    to_come: int = 16


SMALL = Sizes(2, (1500,), 30, 16, 4)

LINE = "{:40} {:>18} {:>16} {:>13} {:>7}"

# From the number of another last token, or None for the unchanged text, to scores.
Step = Callable[[int | None], torch.Tensor]


def our_steps(case: Case, setting: Setting) -> Step:
    """A function that takes one step after the new tokens, and keeps its memory."""
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
    """The same for the class of transformers; None if there is none."""
    if case.theirs is None:
        return None
    processor = case.theirs(setting)
    if case.theirs_remembers:
        for length in range(setting.prompt, setting.length):
            processor(setting.tokens[:, :length], setting.scores)
    texts = {None: setting.tokens} | dict(enumerate(setting.others))
    return lambda number: processor(texts[number], setting.scores)


def contenders(case: Case, setting: Setting) -> dict[str, Step]:
    """The contenders, after one warm-up step each, which also compares their scores."""
    ours, theirs = our_steps(case, setting), their_steps(case, setting)
    first = ours(None)
    if theirs is None:
        return {"decodekit": ours}
    if case.equal and not torch.equal(theirs(None), first):
        raise SystemExit(
            f"{case.name}: the two processors return different scores, so their times cannot be compared."
        )
    return {"transformers": theirs, "decodekit": ours}


def measure(steps: dict[str, Step], device: str, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every step; the contenders alternate, and the last token changes."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(repeats):
        for name, step in steps.items():
            times[name].append(1e3 * timed(partial(step, number % OTHERS), device))
    return times


def measured(case: Case, sizes: Sizes, device: str, repeats: int) -> dict[str, Any]:
    """Measure one case and print its line; returns its part of the JSON file."""
    work: dict[str, Any] = {}
    rows = min(case.rows or sizes.rows, sizes.rows)
    for vocab in sizes.vocabularies:
        setting = Setting.random(
            rows, vocab, sizes.prompt, sizes.said, sizes.to_come, device=device, seed=SEED
        )
        with torch.inference_mode():
            times = measure(contenders(case, setting), device, repeats)
        found = summary(times, "ms", against="transformers")
        work[str(vocab)] = found
        medians = found["median_ms"]
        theirs, ratio = (
            (f"{medians['transformers']:.2f}", f"{found['ratio']:.2f}") if "ratio" in found else ("-", "-")
        )
        shape = f"{rows} x {vocab}"
        print(LINE.format(case.name, shape, theirs, f"{medians['decodekit']:.2f}", ratio), flush=True)
    return {"name": case.name, "rows": rows, "vocabularies": work}


def main(
    *,
    repeats: Repeats = 15,
    threads: Threads = 2,
    device: Device = "cpu",
    only: Annotated[
        str, typer.Option(help="Run only cases whose names begin with this; writes no file.")
    ] = "",
    note: Note = "",
    quick: Quick = False,
    out: Out = None,
) -> None:
    """Measure, print the table and write the JSON."""
    torch.set_num_threads(threads)
    sizes = SMALL if quick else Sizes()
    bytes_a_second = bandwidth(device)
    print(LINE.format("processor", "rows x vocabulary", "transformers ms", "decodekit ms", "ratio"))
    cases = [
        measured(case, sizes, device, 1 if quick else repeats) for case in CASES if case.name.startswith(only)
    ]
    if only:
        return
    part = circumstances(device, threads, repeats, note=note) | {
        "rows": sizes.rows,
        "length": sizes.prompt + sizes.said,
        "bandwidth_gb_per_second": round(bytes_a_second / 1e9, 2),
        "floor_ms": {
            str(vocab): round(1e3 * 4 * sizes.rows * vocab / bytes_a_second, 4)
            for vocab in sizes.vocabularies
        },
        "cases": cases,
    }
    write_part(place(out, "processors.json", quick=quick), device, part)


if __name__ == "__main__":
    typer.run(main)
