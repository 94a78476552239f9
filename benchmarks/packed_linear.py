"""Linear layers with few rows on the CPU: what makes them quick, and what does it cost to begin?

    python benchmarks/packed_linear.py        # writes benchmarks/results/packed_linear.json

Every way multiplies the same rows with the same float32 weights, in turns, after as many other weights as
the cache holds: `F.linear`; `addmm` with a transposed copy, as GPT-2's Conv1D has it; `torch.utils.mkldnn`;
`torch.compile` with freezing; and the operators that decodekit uses. "First use" is the time until the
first result of one layer. Then a random GPT-2 of 124M continues one prompt, and five, greedily: plain and
packed. The copy is timed for one row of one thread too, where decodekit leaves the layer as it is.

Where another process has a core, two threads wait for each other: use `--threads 1` on a busy machine. Times
are then the thread's own, without those in which another process had its core; "first use" is always on the
clock, since compilers are processes of their own.
"""

import copy
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from torch import Tensor, nn

from decodekit.models.linear_layers import packable
from decodekit.models.packed import MOST_ROWS, Packing, _forward

SEED = 0
RESULTS = Path(__file__).parent / "results"
SHAPES = {(768, 3072): (1, 5, 20, 64, 256), (3072, 768): (1, 5, 20, 64, 256), (768, 50257): (1, 5, 20, 64)}
LARGE = 10_000  # features, from which on a call is slow enough to be timed well
CACHE = 64e6  # bytes of other weights between two uses of one; more than this machine's last cache holds
PROMPT = 32
RUNS = ((1, 32), (5, 12))  # prompts, new tokens
LINE = "{:>14} {:>5} " + " {:>12}" * 5 + " {:>7}"
WAYS = ("F.linear", "addmm", "utils.mkldnn", "freezing", "packed")

Way = Callable[[Tensor], Tensor]


def plain(layer: nn.Linear) -> Way:
    """As it is."""
    return layer


def transposed(layer: nn.Linear) -> Way:
    """With the weight written the other way round."""
    weight = layer.weight.t().contiguous()
    return lambda rows: torch.addmm(layer.bias, rows, weight)


def mkldnn_module(layer: nn.Linear) -> Way:
    """With the copy that `torch.utils.mkldnn` makes; only its own layers take rows that are no copies."""
    from torch.utils.mkldnn import to_mkldnn  # noqa: PLC0415 - compiles scripts as it is imported

    return to_mkldnn(copy.deepcopy(layer))


def frozen(layer: nn.Linear) -> Way:
    """Compiled, its weight a constant."""
    import torch._inductor.config as inductor  # noqa: PLC0415 - slow to import

    inductor.freezing = True
    torch._dynamo.reset()  # noqa: SLF001 - as its documentation says
    return torch.compile(layer)


def packed(layer: nn.Linear) -> Way:
    """As decodekit does it."""
    packing = Packing(layer, packed=True)
    packing.refresh()
    # Without the context, which a model enters once, and for one row whatever the threads.
    forward = _forward(packable(layer)[0], next(iter(packing._packs.values())).content, 1)  # noqa: SLF001

    def run(rows: Tensor) -> Tensor:
        assert packing.bytes  # noqa: S101 - holds it
        return forward(rows)

    return run


MAKERS: tuple[Callable[[nn.Linear], Way], ...] = (plain, transposed, mkldnn_module, frozen, packed)


def now() -> float:
    """Seconds: of the only thread, or on the clock."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def layers(width: int, features: int) -> list[nn.Linear]:
    """As many of one shape as the cache does not hold."""
    torch.manual_seed(SEED)
    many = max(2, round(CACHE / (4 * width * features)))
    return [nn.Linear(width, features) for _ in range(many)]


def first_uses(shape: tuple[int, int], rows: int) -> dict[str, float]:
    """Milliseconds from a layer to its first result: the least of two, as the first also imports."""
    found: dict[str, float] = {}
    for name, make in zip(WAYS, MAKERS, strict=True):
        times = []
        for number in range(2):
            torch.manual_seed(SEED + number)
            layer = nn.Linear(*shape)
            start = time.perf_counter()
            make(layer)(torch.ones(rows, shape[0]))
            times.append(1e3 * (time.perf_counter() - start))
        found[name] = round(min(times), 3)
    return found


def per_call(shape: tuple[int, int], counts: tuple[int, ...], repeats: int) -> list[dict[str, Any]]:
    """Milliseconds of a call for every number of rows, all ways in turns."""
    made = layers(*shape)
    # Compiled code is looked up by layer and shape, so one layer of it stands for all: it is measured with
    # the other ways' weights between two of its calls.
    ways = {
        name: [make(layer) for layer in made]
        for name, make in zip(WAYS, MAKERS, strict=True)
        if make is not frozen
    }
    alone = frozen(made[0])
    found = []
    for count in counts:
        rows = torch.randn(count, shape[0])
        expected = made[0](rows)
        times: dict[str, list[float]] = {name: [] for name in WAYS}
        for number in range(-1, repeats):  # the first warms up
            for name in WAYS:
                way = alone if name == "freezing" else ways[name][number % len(made)]
                start = now()
                output = way(rows)
                if number >= 0:
                    times[name].append(1e3 * (now() - start))
                elif way is alone or number % len(made) == 0:
                    torch.testing.assert_close(output, expected, atol=1e-3, rtol=1e-3)
        found.append({"in": shape[0], "out": shape[1], "rows": count, **summary(times)})
    return found


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, quartiles, the least, and the ratio of medians of packed to F.linear."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    quartiles = {
        name: statistics.quantiles(values, n=4, method="inclusive") for name, values in times.items()
    }
    return {
        "median_ms": {name: round(value, 4) for name, value in medians.items()},
        "quartiles_ms": {name: [round(low, 4), round(high, 4)] for name, (low, _, high) in quartiles.items()},
        "least_ms": {name: round(min(values), 4) for name, values in times.items()},
        "ratio": round(medians["packed"] / medians["F.linear"], 3),
    }


def greedy(model: Any, packing: Packing | None, prompts: int, new: int) -> Tensor:  # noqa: ANN401 - of transformers
    """The most likely tokens after random prompts."""
    tokens = torch.randint(0, 50257, (prompts, PROMPT), generator=torch.Generator().manual_seed(SEED))
    known, said = transformers.DynamicCache(config=model.config), []
    for _ in range(new):
        with packing.active() if packing is not None else nullcontext():
            output = model(tokens, cache=known, use_cache=True, logits_to_keep=1)
        tokens = output.logits[:, -1].argmax(-1, keepdim=True)
        said.append(tokens)
    return torch.cat(said, 1)


def whole_model(repeats: int) -> dict[str, Any]:
    """Whole runs, and what packing, looking for changes, and the context take."""
    torch.manual_seed(SEED)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    packing = Packing(model, "auto")
    start = now()
    packing.refresh()
    first = now() - start
    start = now()
    packing.refresh()
    again = now() - start
    start = now()
    for _ in range(100):
        with packing.active():
            pass
    entered = (now() - start) / 100
    return {
        "name": "GPT-2 124M",
        "runs": [greedy_runs(model, packing, *work, repeats) for work in RUNS],
        "pack_s": round(first, 3),
        "check_s": round(again, 4),
        "enter_and_leave_ms": round(1e3 * entered, 4),
        "bytes": packing.bytes,
    }


def greedy_runs(model: Any, packing: Packing, prompts: int, new: int, repeats: int) -> dict[str, Any]:  # noqa: ANN401
    """Seconds of a run, plain and packed in turns, after one run each."""
    same = torch.equal(greedy(model, None, prompts, new), greedy(model, packing, prompts, new))
    times: dict[str, list[float]] = {"plain": [], "packed": []}
    for _ in range(repeats):
        for name, used in (("plain", None), ("packed", packing)):
            start = now()
            greedy(model, used, prompts, new)
            times[name].append(now() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "work": f"greedy, {prompts} x {PROMPT}, {new} new",
        "median_s": {name: round(value, 3) for name, value in medians.items()},
        "spread_s": {name: [round(min(values), 3), round(max(values), 3)] for name, values in times.items()},
        "ratio": round(medians["packed"] / medians["plain"], 3),
        "same_tokens": same,
    }


def main(
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    repeats: Annotated[int, typer.Option(help="Timed calls of each way; of the head a third.")] = 15,
    runs: Annotated[int, typer.Option(help="Timed runs of the whole model.")] = 3,
    out: Annotated[Path, typer.Option(help="The JSON file.")] = RESULTS / "packed_linear.json",
) -> None:
    """Measure, print the table and write the JSON."""
    torch.set_num_threads(threads)
    load = os.getloadavg()[0]
    print(f"milliseconds, medians; {threads} threads, load {load:.1f}")
    print(LINE.format("in x out", "rows", *WAYS, "ratio"))
    calls, first = [], {}
    with torch.inference_mode():
        for shape, counts in SHAPES.items():
            name = f"{shape[0]} x {shape[1]}"
            first[name] = first_uses(shape, 5)
            print(LINE.format(name, "first", *(f"{first[name][way]:.1f}" for way in WAYS), ""), flush=True)
            for found in per_call(shape, counts, repeats if shape[1] < LARGE else -(-repeats // 3)):
                calls.append(found)
                medians = (f"{found['median_ms'][way]:.3f}" for way in WAYS)
                print(LINE.format(name, found["rows"], *medians, f"{found['ratio']:.2f}"), flush=True)
            gc.collect()
        model = whole_model(runs)
    for run in model["runs"]:
        print(run["work"], run["median_s"], f"ratio {run['ratio']:.2f}, same tokens: {run['same_tokens']}")
    print(", ".join(f"{key} {value}" for key, value in model.items() if key not in {"name", "runs"}))
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{threads} threads, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "clock": "of the thread" if threads == 1 else "wall",
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "seed": SEED,
        "repeats": repeats,
        "most_rows": MOST_ROWS,
        "first_use_ms": first,
        "calls": calls,
        "model": model,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
