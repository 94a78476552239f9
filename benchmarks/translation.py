"""Quality and time of every decoder on the bundled translation model.

    python benchmarks/translation.py fra-eng.zip     # writes benchmarks/results/translation.json

Every decoder translates sentences that `train_en_fr.py` held out for the test. sacrebleu compares the
translations with all reference translations: corpus chrF and BLEU, with 95 % intervals from 1,000 bootstrap
resamples. The printed table also shows the mean log-probability, the length relative to the references, and
the median time of the runs.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any, NamedTuple

import torch
import typer
from command_line import Note, Out, Repeats, Threads
from record import SEED, circumstances, place, quartiles, write
from rich.console import Console
from rich.table import Table
from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sentence_pairs import read_pairs, references

import decodekit as dk

RESAMPLES = 1000
MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Strategy:
    """One way to translate.

    Attributes:
        name: Name in the table.
        decoder: A function from the numbers of the sentences in a batch, which serve as seeds, to a decoder.
        processors: Processors of the scores.
        rerank: A function that reranks the hypotheses, or None.
    """

    name: str
    decoder: Callable[[list[int]], dk.Decoder[Any]]
    processors: tuple[dk.LogitsProcessor, ...] = ()
    rerank: Callable[[dk.Decoded], dk.Decoded] | None = None


def beam(beams: int, scorer: dk.PathScorer | None = None) -> Callable[[list[int]], dk.BeamSearch]:
    """Beam search; by default it ranks by the mean log-probability per token."""
    return lambda _: dk.BeamSearch(beams, scorer=scorer or dk.LengthPenalty(1.0))


def samples(number: int) -> Callable[[list[int]], dk.Sample]:
    """Sampling, with the numbers of the sentences as seeds."""
    return lambda sentences: dk.Sample(number, seeds=[SEED + sentence for sentence in sentences])


def risk(out: dk.Decoded) -> dk.Decoded:
    """The sample with the highest mean chrF against all samples."""
    return dk.mbr(out, dk.ChrF())


def mean_risk(out: dk.Decoded) -> dk.Decoded:
    """The sample with the highest chrF against the mean of all samples."""
    return dk.mbr(out, dk.ChrF(), aggregate=True)


STRATEGIES = (
    Strategy("greedy", lambda _: dk.Greedy()),
    Strategy("beam search, 2 beams", beam(2)),
    Strategy("beam search, 5 beams", beam(5)),
    Strategy("beam search, 10 beams", beam(10)),
    Strategy("5 beams, length penalty 0", beam(5, dk.LengthPenalty(0.0))),
    Strategy("5 beams, length penalty 0.6", beam(5, dk.LengthPenalty(0.6))),
    Strategy("5 beams, length penalty 2", beam(5, dk.LengthPenalty(2.0))),
    Strategy("5 beams, GNMT length penalty 0.6", beam(5, dk.GNMTLengthPenalty(0.6))),
    Strategy("5 beams, GNMT length penalty 0.6, coverage penalty 0.2", beam(5, dk.CoveragePenalty(0.2))),
    Strategy("one sample", samples(1)),
    Strategy("one sample, epsilon 0.02", samples(1), (dk.EpsilonCutoff(0.02),)),
    Strategy("MBR of 32 samples", samples(32), rerank=risk),
    Strategy("MBR of 32 samples, epsilon 0.02", samples(32), (dk.EpsilonCutoff(0.02),), risk),
    Strategy(
        "MBR of 32 samples, epsilon 0.02, against their mean",
        samples(32),
        (dk.EpsilonCutoff(0.02),),
        mean_risk,
    ),
)


class Translation(NamedTuple):
    """A hypothesis, the model's log-probability of it and its length in tokens."""

    text: str
    log_prob: float
    length: int


@dataclass(frozen=True)
class Found:
    """The translations of a strategy, and the seconds of its runs."""

    translations: list[Translation]
    seconds: list[float]


def batches(sources: list[str], size: int) -> Iterator[list[int]]:
    """Numbers of the sentences of each batch; a batch has sentences of similar lengths."""
    order = sorted(range(len(sources)), key=lambda number: len(sources[number]))
    return (order[first : first + size] for first in range(0, len(order), size))


def translate(
    model: dk.HFModel, strategy: Strategy, sources: list[str], batch: int, repeats: int = 1
) -> Found:
    """The best hypothesis of every sentence, in the order of the sentences, and the seconds of every run."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = translations(model, strategy, sources, batch)
        seconds.append(time.perf_counter() - start)
    return Found([found[number] for number in range(len(sources))], seconds)


def translations(
    model: dk.HFModel, strategy: Strategy, sources: list[str], batch: int
) -> dict[int, Translation]:
    """The best hypothesis of every sentence, by its number."""
    found: dict[int, Translation] = {}
    for numbers in batches(sources, batch):
        out = dk.decode(
            model,
            [sources[number] for number in numbers],
            strategy.decoder(numbers),
            strategy.processors,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        if strategy.rerank is not None:
            out = strategy.rerank(out)
        texts = [several[0] for several in out.texts or []]
        best = zip(numbers, texts, out.log_prob[:, 0].tolist(), out.lengths[:, 0].tolist(), strict=True)
        found |= {number: Translation(*rest) for number, *rest in best}
    return found


def streams(wanted: list[list[str]]) -> list[list[str | None]]:
    """References in sacrebleu's format: all first ones, all second ones and so on, padded with None."""
    most = max(map(len, wanted))
    return [[several[rank] if rank < len(several) else None for several in wanted] for rank in range(most)]


def measured(metric: Metric, texts: list[str], wanted: list[list[str]]) -> dict[str, Any]:
    """The score of the corpus, half the width of its 95 % interval, and the signature of sacrebleu."""
    several: Any = streams(wanted)  # the type hints of sacrebleu do not include None
    score = metric.corpus_score(texts, several, n_bootstrap=RESAMPLES)
    signature = str(metric.get_signature())
    said = json.loads(score.format(width=2, signature=signature, is_json=True))
    found = {"score": round(score.score, 2), "interval": said.get("confidence_var", 0.0)}
    if isinstance(metric, BLEU):
        found["length_ratio"] = round(score.sys_len / score.ref_len, 3)
    return found | {"signature": signature}


def summary(strategy: Strategy, found: Found, wanted: list[list[str]]) -> dict[str, Any]:
    """One row of the table."""
    texts = [translation.text for translation in found.translations]
    log_probs = [translation.log_prob for translation in found.translations]
    lengths = [translation.length for translation in found.translations]
    return {
        "name": strategy.name,
        "decoder": repr(strategy.decoder([0])),
        "processors": [repr(processor) for processor in strategy.processors],
        "chrf": measured(CHRF(), texts, wanted),
        "bleu": measured(BLEU(), texts, wanted),
        "mean_log_prob": round(mean(log_probs), 3),
        "mean_tokens": round(mean(lengths), 2),
        "median_s": round(median(found.seconds), 2),
        "quartiles_s": quartiles(found.seconds),
    }


def main(
    pairs: Annotated[Path, typer.Argument(help="The archive of sentence pairs.")],
    *,
    repeats: Repeats = 3,
    sentences: Annotated[int, typer.Option(help="Maximum number of sentences to translate.")] = 500,
    batch: Annotated[int, typer.Option(help="Sentences per batch.")] = 64,
    threads: Threads = 1,
    model: Annotated[str, typer.Option(help="Another model from English to French.")] = "en-fr",
    note: Note = "",
    out: Out = None,
) -> None:
    """Translate, print the table and write the JSON."""
    torch.set_num_threads(threads)
    held_out = references(read_pairs(pairs).test)
    # The file is sorted by length, so the sentences are drawn at random.
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(SEED))
    sources = [list(held_out)[number] for number in order[:sentences].tolist()]
    wanted = [held_out[source] for source in sources]
    loaded = dk.load(model)
    first = dk.score(loaded, sources, [[several[0]] for several in wanted], batch_size=batch)  # warms up, too
    table = Table("strategy", "chrF", "BLEU", "length", "log-prob", "seconds")
    rows = []
    for strategy in STRATEGIES:
        row = summary(strategy, translate(loaded, strategy, sources, batch, repeats), wanted)
        rows.append(row)
        table.add_row(
            strategy.name,
            *(f"{row[metric]['score']:.1f} ± {row[metric]['interval']:.1f}" for metric in ("chrf", "bleu")),
            f"{row['bleu']['length_ratio']:.2f}",
            f"{row['mean_log_prob']:.2f}",
            f"{row['median_s']:.1f}",
        )
    Console(width=110).print(table)
    record = circumstances("cpu", threads, repeats, ["sacrebleu"], note) | {
        "model": model,
        "sentences": len(sources),
        "references": sum(map(len, wanted)),
        "batch": batch,
        "resamples": RESAMPLES,
        "reference_mean_log_prob": round(first.log_prob.mean().item(), 3),
        "strategies": rows,
    }
    write(place(out, "translation.json", quick=False), record)


if __name__ == "__main__":
    typer.run(main)
