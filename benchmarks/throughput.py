"""Time for a long list of prompts, in decodekit and in `model.generate()` with batches.

    python benchmarks/throughput.py       # writes the "cpu" part of benchmarks/results/throughput.json

Prompts of 16 to 256 tokens are decoded by greedy search with a random model. Each prompt has its own limit of
8 to 128 new tokens, and most limits are low. `generate` decodes batches of 32 prompts, in the given order and
sorted by length; decodekit gets the whole list. The runs alternate in one process. The printed table shows
the medians, the ratio, and the number of equal texts: matrix products round differently for different numbers
of rows, which occasionally changes a token. The JSON file has the quartiles, the device, the versions, and
the floor: the bytes that must be read if all prompts are one batch, divided by the bandwidth measured in the
same run.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
import transformers
import typer
from command_line import Device, Note, Out, Quick, Repeats, Threads
from floor import bandwidth, bytes_read
from measuring import in_turns
from record import SEED, circumstances, place, summary, write_part
from torch import Tensor

import decodekit as dk

BATCH, LONGEST_PROMPT, MOST_NEW = 32, 256, 128
BAR = 0.5  # target: the largest allowed ratio of times
LINE = "{:42} {:>9} {:>14} {:>7} {:>6} {:>11}"
Texts = list[list[int]]


class Enough(dk.StoppingCriterion):
    """Finishes every prompt at its own number of tokens, for decodekit."""

    reason = "enough"
    batch_independent = True

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = torch.tensor(lengths)

    def init(self, history: dk.History, run: object) -> tuple[Tensor, Tensor]:
        """The number of tokens of each row, and the column of its first new token."""
        del run
        return history.to_rows(self.lengths.to(history.tokens.device)), history.position.clone()

    def apply(
        self, history: dk.History, log_probs: Tensor, memory: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """True for rows with enough tokens."""
        del log_probs
        lengths, start = memory
        return history.position - start >= lengths, memory


class EnoughForGenerate(transformers.StoppingCriteria):  # type: ignore[misc]
    """The same for one batch of transformers."""

    def __init__(self, lengths: Sequence[int], start: int, device: torch.device) -> None:
        self.lengths, self.start = torch.tensor(lengths, device=device), start

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        """True for rows with enough tokens."""
        del scores
        return input_ids.shape[1] - self.start >= self.lengths


def work(prompts: int, vocab: int) -> tuple[Texts, list[int]]:
    """Prompts of random lengths, and their limits of new tokens: a quarter of the maximum, on average."""
    generator = torch.Generator().manual_seed(SEED)
    lengths = torch.randint(16, LONGEST_PROMPT + 1, (prompts,), generator=generator).tolist()
    texts = [torch.randint(0, vocab, (length,), generator=generator).tolist() for length in lengths]
    skewed = 8 + (MOST_NEW - 8 + 1) * torch.rand(prompts, generator=generator) ** 3
    return texts, skewed.long().clamp(max=MOST_NEW).tolist()


def generate_in_batches(model: Any, texts: Texts, new: list[int], order: Sequence[int]) -> Texts:  # noqa: ANN401
    """The texts of `generate`, where every batch is as long as its longest text."""
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


def make_model(device: str) -> Any:  # noqa: ANN401 - of transformers
    """A random GPT-2 of 4 layers, 256 wide, with the vocabulary of GPT-2."""
    torch.manual_seed(SEED)
    config = transformers.GPT2Config(
        n_layer=4, n_embd=256, n_head=8, n_positions=1024, bos_token_id=None, eos_token_id=None
    )
    return transformers.GPT2LMHeadModel(config).eval().to(device)


def contenders(model: Any, prompts: int) -> dict[str, Callable[[], Texts]]:  # noqa: ANN401
    """The contenders, by name."""
    wrapped = dk.HFModel(model)
    texts, new = work(prompts, model.config.vocab_size)
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
    """Seconds of every alternating run after one warm-up run each, and ratios to the first contender."""
    texts = {name: run() for name, run in runs.items()}
    times = in_turns(runs, repeats, device)
    first = next(iter(runs))
    rows = []
    for name in runs:
        found = summary(times, "s", against=first, ours=name)
        median = found["median_s"][name]
        rows.append(
            {
                "name": name,
                "median_s": median,
                "quartiles_s": found["quartiles_s"][name],
                "tokens_per_s": round(sum(map(len, texts[name])) / median, 1),
                "ratio": found["ratio"],
                "bar": BAR if name.startswith("decodekit") else None,
                "same_texts": sum(a == b for a, b in zip(texts[first], texts[name], strict=True)),
            }
        )
    return rows


def main(
    *,
    repeats: Repeats = 3,
    prompts: Annotated[int, typer.Option(help="Prompts in the list.")] = 256,
    threads: Threads = 2,
    device: Device = "cpu",
    note: Note = "",
    quick: Quick = False,
    out: Out = None,
) -> None:
    """Measure, print the table and write the JSON."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    if quick:
        repeats, prompts = 1, 3
    model = make_model(device)
    texts, new = work(prompts, model.config.vocab_size)
    bytes_a_second = bandwidth(device)
    floor = bytes_read(model, zip(map(len, texts), new, strict=True)) / bytes_a_second
    rows = measure(contenders(model, prompts), repeats, device)
    print(LINE.format("library", "seconds", "new tokens/s", "ratio", "target", "same texts"))
    for row in rows:
        bar = "" if row["bar"] is None else f"{row['bar']:.2f}"
        numbers = (f"{row['median_s']:.2f}", f"{row['tokens_per_s']:.0f}", f"{row['ratio']:.2f}")
        print(LINE.format(row["name"], *numbers, bar, f"{row['same_texts']}/{prompts}"))
    print(LINE.format("floor", f"{floor:.2f}", "", "", "", ""))
    part = circumstances(device, threads, repeats, note=note) | {
        "prompts": prompts,
        "bandwidth_gb_per_second": round(bytes_a_second / 1e9, 2),
        "floor_s": round(floor, 4),
        "runs": rows,
    }
    write_part(place(out, "throughput.json", quick=quick), device, part)


if __name__ == "__main__":
    typer.run(main)
