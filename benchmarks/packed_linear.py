"""Linear layers with few rows on the CPU: time of a call, and time of the first use.

    python benchmarks/packed_linear.py        # writes benchmarks/results/packed_linear.json

Five ways multiply the same rows with the same float32 weights: `F.linear`; `addmm` with a transposed copy, as
in GPT-2's Conv1D; `torch.utils.mkldnn`; `torch.compile` with freezing; and the operators of decodekit. The
ways alternate. Between two uses of a weight, a way reads enough other weights to fill the cache. "First use"
is the time until the first result of one layer. Then a random GPT-2 of 124M parameters continues one prompt,
and then five prompts, by greedy search, with plain and with packed layers. The packed copy is also timed for
one row on one thread, where decodekit does not pack.

If another process uses a core, two threads wait for each other: use `--threads 1` on a busy machine. Times
are then CPU times of the thread, without the time of other processes. "First use" is always wall-clock time,
because compilers run in their own processes.
"""

import copy
import gc
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any

import torch
import transformers
import typer
from command_line import Note, Out, Quick, Threads
from floor import bandwidth, bytes_read
from measuring import in_turns, timed
from record import SEED, circumstances, place, summary, write
from torch import Tensor, nn

from decodekit.accelerate.packed_linear import MAX_ROWS, Packing, packed_forward
from decodekit.models.hf.forwards.forward import find_packable

Way = Callable[[Tensor], Tensor]
Ways = dict[str, Callable[[nn.Linear], Way]]
Shapes = dict[tuple[int, int], tuple[int, ...]]

SHAPES: Shapes = {
    (768, 3072): (1, 5, 20, 64, 256),
    (3072, 768): (1, 5, 20, 64, 256),
    (768, 50257): (1, 5, 20, 64),
}
LARGE = 10_000  # number of features from which fewer repeats suffice, because a call is slow
CACHE = 64e6  # bytes of other weights between two uses of a weight; more than the last-level cache
PROMPT = 32  # tokens
RUNS = ((1, 32), (5, 12))  # prompts, new tokens
SMALL_SHAPES: Shapes = {(256, 512): (1, 5)}
SMALL_MODEL = {"n_layer": 2, "n_embd": 256, "n_head": 4}


def plain(layer: nn.Linear) -> Way:
    """The layer itself."""
    return layer


def transposed(layer: nn.Linear) -> Way:
    """`addmm` with a transposed copy of the weight."""
    weight = layer.weight.t().contiguous()
    return lambda rows: torch.addmm(layer.bias, rows, weight)


def mkldnn_module(layer: nn.Linear) -> Way:
    """The layer of `torch.utils.mkldnn`, with its own copy of the weight."""
    from torch.utils.mkldnn import to_mkldnn  # noqa: PLC0415 - compiles scripts at import

    way: Way = to_mkldnn(copy.deepcopy(layer))  # type: ignore[no-untyped-call]
    return way


def frozen(layer: nn.Linear) -> Way:
    """The compiled layer, with its weight as a constant."""
    import torch._inductor.config as inductor  # noqa: PLC0415 - slow to import

    inductor.freezing = True
    torch._dynamo.reset()  # noqa: SLF001 - as its documentation says
    return torch.compile(layer)


def packed(layer: nn.Linear) -> Way:
    """The packed layer of decodekit."""
    packing = Packing(layer, True, find_packable)
    packing.refresh()
    # Without the context, which a model enters once per pass, and for one row with any number of threads.
    content = next(iter(packing._packs.values())).content  # noqa: SLF001
    forward = packed_forward(find_packable(layer).layers[0], content, 1)

    def run(rows: Tensor) -> Tensor:
        assert packing.bytes  # noqa: S101 - keeps `packing` alive
        return forward(rows)

    return run


WAYS: Ways = {
    "F.linear": plain,
    "addmm": transposed,
    "utils.mkldnn": mkldnn_module,
    "freezing": frozen,
    "packed": packed,
}


def now() -> float:
    """Time in seconds: CPU time with one thread, else wall-clock time."""
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()


def layers(width: int, features: int) -> list[nn.Linear]:
    """Enough layers of one shape to exceed the cache."""
    torch.manual_seed(SEED)
    many = max(2, round(CACHE / (4 * width * features)))
    return [nn.Linear(width, features) for _ in range(many)]


def first_uses(ways: Ways, shape: tuple[int, int], rows: int) -> dict[str, float]:
    """Milliseconds from a layer to its first result: the smaller of two, because the first also imports."""
    found: dict[str, float] = {}
    for name, make in ways.items():
        times = []
        for number in range(2):
            torch.manual_seed(SEED + number)
            layer = nn.Linear(*shape)
            start = time.perf_counter()
            make(layer)(torch.ones(rows, shape[0]))
            times.append(1e3 * (time.perf_counter() - start))
        found[name] = round(min(times), 3)
    return found


def per_call(
    ways: Ways, shape: tuple[int, int], counts: tuple[int, ...], repeats: int
) -> list[dict[str, Any]]:
    """Milliseconds of a call for every number of rows; the ways alternate."""
    made = layers(*shape)
    # Compiled code is looked up by layer and shape, so only one layer is compiled. Between two of its calls
    # the weights of the other ways are read.
    calls = {
        name: [make(layer) for layer in (made[:1] if make is frozen else made)] for name, make in ways.items()
    }
    found = []
    for count in counts:
        rows = torch.randn(count, shape[0])
        expected = made[0](rows)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(-1, repeats):  # the first one is the warm-up
            for name, each in calls.items():
                place = number % len(each)
                if number >= 0:
                    times[name].append(1e3 * timed(partial(each[place], rows), clock=now))
                    continue
                output = each[place](rows)
                if place == 0:
                    torch.testing.assert_close(output, expected, atol=1e-3, rtol=1e-3)
        told = summary(times, "ms", against="F.linear", ours="packed")
        least = {name: round(min(values), 4) for name, values in times.items()}
        found.append({"in": shape[0], "out": shape[1], "rows": count, **told, "least_ms": least})
    return found


def greedy(model: Any, packing: Packing | None, prompts: int, new: int) -> Tensor:  # noqa: ANN401 - of transformers
    """The tokens of greedy search after random prompts."""
    tokens = torch.randint(0, 50257, (prompts, PROMPT), generator=torch.Generator().manual_seed(SEED))
    known, said = transformers.DynamicCache(config=model.config), []
    for _ in range(new):
        with packing.active() if packing is not None else nullcontext():
            output = model(tokens, cache=known, use_cache=True, logits_to_keep=1)
        tokens = output.logits[:, -1].argmax(-1, keepdim=True)
        said.append(tokens)
    return torch.cat(said, 1)


def whole_model(repeats: int, bytes_a_second: float, *, quick: bool) -> dict[str, Any]:
    """Times of whole runs, of packing, of the check for changed weights, and of the context."""
    torch.manual_seed(SEED)
    config = transformers.GPT2Config(**SMALL_MODEL) if quick else transformers.GPT2Config()
    model = transformers.GPT2LMHeadModel(config).eval()
    packing = Packing(model, "auto", find_packable)
    first, again = timed(packing.refresh, clock=now), timed(packing.refresh, clock=now)

    def enter_and_leave() -> None:
        for _ in range(100):
            with packing.active():
                pass

    entered = timed(enter_and_leave, clock=now) / 100
    return {
        "name": "a small GPT-2" if quick else "GPT-2 124M",
        "runs": [greedy_runs(model, packing, *work, repeats, bytes_a_second) for work in RUNS],
        "pack_s": round(first, 3),
        "check_s": round(again, 4),
        "enter_and_leave_ms": round(1e3 * entered, 4),
        "bytes": packing.bytes,
    }


def greedy_runs(
    model: Any,  # noqa: ANN401
    packing: Packing,
    prompts: int,
    new: int,
    repeats: int,
    bytes_a_second: float,
) -> dict[str, Any]:
    """Seconds of alternating plain and packed runs, after one warm-up run each."""
    runs = {
        "plain": partial(greedy, model, None, prompts, new),
        "packed": partial(greedy, model, packing, prompts, new),
    }
    first, second = (run() for run in runs.values())
    return {
        "work": f"greedy, {prompts} x {PROMPT}, {new} new",
        **summary(in_turns(runs, repeats, clock=now), "s", against="plain", ours="packed"),
        "floor_s": round(bytes_read(model, [(PROMPT, new)] * prompts) / bytes_a_second, 4),
        "same_tokens": torch.equal(first, second),
    }


def main(
    *,
    repeats: Annotated[int, typer.Option(help="Timed calls of each way; a third for the LM head.")] = 15,
    runs: Annotated[int, typer.Option(help="Timed runs of the whole model.")] = 3,
    threads: Threads = 2,
    note: Note = "",
    quick: Quick = False,
    out: Out = None,
) -> None:
    """Measure, print the table and write the JSON."""
    torch.set_num_threads(threads)
    ways, shapes = WAYS, SHAPES
    if quick:
        ways = {name: make for name, make in WAYS.items() if make is not frozen}  # compiling is slow
        shapes, repeats, runs = SMALL_SHAPES, 2, 1
    load = os.getloadavg()[0]
    bytes_a_second = bandwidth(clock=now)
    print(f"milliseconds, medians; {threads} threads, load {load:.1f}")
    line = "{:>14} {:>5} " + " {:>12}" * len(ways) + " {:>7}"
    print(line.format("in x out", "rows", *ways, "ratio"))
    calls, first, floors = [], {}, {}
    with torch.inference_mode():
        for shape, counts in shapes.items():
            name = f"{shape[0]} x {shape[1]}"
            first[name] = first_uses(ways, shape, 5)
            floors[name] = round(4e3 * shape[0] * shape[1] / bytes_a_second, 4)
            print(line.format(name, "first", *(f"{first[name][way]:.1f}" for way in ways), ""), flush=True)
            for found in per_call(ways, shape, counts, repeats if shape[1] < LARGE else -(-repeats // 3)):
                calls.append(found)
                medians = (f"{found['median_ms'][way]:.3f}" for way in ways)
                print(line.format(name, found["rows"], *medians, f"{found['ratio']:.2f}"), flush=True)
            gc.collect()
        model = whole_model(runs, bytes_a_second, quick=quick)
    for run in model["runs"]:
        print(run["work"], run["median_s"], f"ratio {run['ratio']:.2f}, same tokens: {run['same_tokens']}")
    print(", ".join(f"{key} {value}" for key, value in model.items() if key not in {"name", "runs"}))
    record = circumstances("cpu", threads, repeats, note=note) | {
        "clock": "CPU time of the thread" if threads == 1 else "wall-clock time",
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "most_rows": MAX_ROWS,
        "bandwidth_gb_per_second": round(bytes_a_second / 1e9, 2),
        "floor_ms": floors,
        "first_use_ms": first,
        "calls": calls,
        "model": model,
    }
    write(place(out, "packed_linear.json", quick=quick), record)


if __name__ == "__main__":
    typer.run(main)
