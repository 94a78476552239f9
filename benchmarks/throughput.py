"""How long does a long list of prompts take, next to `model.generate()` in batches?

    python benchmarks/throughput.py       # writes the "cpu" part of benchmarks/results/throughput.json

Prompts of 16 to 256 tokens, of which each stops after 8 to 128 new ones of its own, most of them early: under
greedy search, with a model of random weights. `generate` gets batches of 32 prompts, as they come and sorted
by their lengths; decodekit gets the list. All in one run, in turns. A table shows the medians, the ratio and
how many texts are the same: products of matrices round differently for different numbers of rows, which now
and then decides between two tokens. The JSON has the quartiles, the device and the versions.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from torch import Tensor

import decodekit as dk

SEED = 0
RESULTS = Path(__file__).parent / "results"
BATCH, LONGEST_PROMPT, MOST_NEW = 32, 256, 128
BAR = 0.5
LINE = "{:42} {:>9} {:>14} {:>7} {:>6} {:>11}"
Texts = list[list[int]]


class Enough(dk.StoppingCriterion):
    """Finishes every prompt after a number of tokens of its own, for decodekit."""

    reason = "enough"
    splits = True

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = torch.tensor(lengths)

    def init(self, history: dk.History, run: object) -> tuple[Tensor, Tensor]:
        """The column at which each row has enough, and the row's memory of it."""
        del run
        return history.spread(self.lengths.to(history.tokens.device)), history.position.clone()

    def apply(
        self, history: dk.History, log_probs: Tensor, memory: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Rows that have said enough."""
        del log_probs
        lengths, start = memory
        return history.position - start >= lengths, memory


class EnoughForGenerate(transformers.StoppingCriteria):
    """The same for transformers, and a batch."""

    def __init__(self, lengths: Sequence[int], start: int, device: torch.device) -> None:
        self.lengths, self.start = torch.tensor(lengths, device=device), start

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        """Rows that have said enough."""
        del scores
        return input_ids.shape[1] - self.start >= self.lengths


def work(prompts: int, vocab: int) -> tuple[Texts, list[int]]:
    """Prompts of all lengths, and how many tokens each is given: a quarter of the most, on average."""
    generator = torch.Generator().manual_seed(SEED)
    lengths = torch.randint(16, LONGEST_PROMPT + 1, (prompts,), generator=generator).tolist()
    texts = [torch.randint(0, vocab, (length,), generator=generator).tolist() for length in lengths]
    skewed = 8 + (MOST_NEW - 8 + 1) * torch.rand(prompts, generator=generator) ** 3
    return texts, skewed.long().clamp(max=MOST_NEW).tolist()


def generate_in_batches(model: Any, texts: Texts, new: list[int], order: Sequence[int]) -> Texts:  # noqa: ANN401
    """Every batch as long as its longest text."""
    said: Texts = [[] for _ in texts]
    for first in range(0, len(order), BATCH):
        numbers = order[first : first + BATCH]
        batch = dk.Prompt.from_ids([texts[number] for number in numbers], pad_id=0).to(model.device)
        start, lengths = batch.tokens.shape[1], [new[number] for number in numbers]
        enough = EnoughForGenerate(lengths, start, model.device)
        out = model.generate(
            batch.tokens,
            attention_mask=batch.mask.long(),
            max_new_tokens=MOST_NEW,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=[enough],
        )
        for number, row in zip(numbers, out[:, start:].tolist(), strict=True):
            said[number] = row[: new[number]]
    return said


def contenders(device: str, prompts: int) -> dict[str, Callable[[], Texts]]:
    """Who is measured."""
    torch.manual_seed(SEED)
    config = transformers.GPT2Config(
        n_layer=4, n_embd=256, n_head=8, n_positions=1024, bos_token_id=None, eos_token_id=None
    )
    model: Any = transformers.GPT2LMHeadModel(config).eval().to(device)
    wrapped = dk.HFModel(model)
    texts, new = work(prompts, config.vocab_size)
    as_they_come = range(prompts)
    by_length = sorted(as_they_come, key=lambda number: len(texts[number]))

    def decode() -> Texts:
        out = dk.decode(
            wrapped,
            texts,
            dk.Greedy(),
            stop=Enough(new),
            max_new_tokens=MOST_NEW,
            end_ids=(),
            pad_id=0,
            batch_tokens="auto",
        )
        return [hypotheses[0] for hypotheses in out.hypotheses()]

    return {
        f"generate, batches of {BATCH}": lambda: generate_in_batches(model, texts, new, as_they_come),
        f"generate, batches of {BATCH} sorted by length": lambda: generate_in_batches(
            model, texts, new, by_length
        ),
        'decodekit, batch_tokens="auto"': decode,
    }


def measure(runs: dict[str, Callable[[], Texts]], repeats: int, device: str) -> list[dict[str, Any]]:
    """The seconds of every run, in turns, after one each to warm up, against the first."""
    texts = {name: run() for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    first = next(iter(runs))
    rows = []
    for name, seconds in times.items():
        median = statistics.median(seconds)
        low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if repeats > 1 else [median] * 3
        said = sum(map(len, texts[name]))
        rows.append(
            {
                "name": name,
                "median_s": round(median, 3),
                "quartiles_s": [round(low, 3), round(high, 3)],
                "tokens_per_s": round(said / median, 1),
                "ratio": round(median / statistics.median(times[first]), 3),
                "bar": BAR if name.startswith("decodekit") else None,
                "same_texts": sum(a == b for a, b in zip(texts[first], texts[name], strict=True)),
            }
        )
    return rows


def main(
    repeats: Annotated[int, typer.Option(help="Timed runs of each contender.")] = 3,
    prompts: Annotated[int, typer.Option(help="Prompts in the list.")] = 256,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    device: Annotated[str, typer.Option(help="Where to run: cpu or cuda.")] = "cpu",
    note: Annotated[str, typer.Option(help="What else is to be said of this run.")] = "",
    out: Annotated[Path, typer.Option(help="The JSON file; other devices' parts of it stay.")] = (
        RESULTS / "throughput.json"
    ),
) -> None:
    """Measure, print the table and write the JSON."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    rows = measure(contenders(device, prompts), repeats, device)
    print(LINE.format("who", "seconds", "new tokens/s", "ratio", "bar", "same texts"))
    for row in rows:
        bar = "" if row["bar"] is None else f"{row['bar']:.2f}"
        numbers = (f"{row['median_s']:.2f}", f"{row['tokens_per_s']:.0f}", f"{row['ratio']:.2f}")
        print(LINE.format(row["name"], *numbers, bar, f"{row['same_texts']}/{prompts}"))
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{threads} threads, {platform.machine()}"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    record = json.loads(out.read_text()) if out.exists() else {}
    record[device] = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": machine,
        "versions": versions | {"python": platform.python_version()},
        "seed": SEED,
        "repeats": repeats,
        "prompts": prompts,
        "note": note,
        "runs": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
