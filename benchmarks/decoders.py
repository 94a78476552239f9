"""Results and costs of every decoder on the two bundled models.

    python benchmarks/decoders.py fra-eng.zip     # writes benchmarks/results/decoders.json

The language model continues openings of stories. The translation model translates sentences that
`train_en_fr.py` held out for the test. The measurements of each decoder are, for the first hypothesis:

* the model's mean log-probability per token,
* distinct-1 and distinct-2: the fractions of distinct words and of distinct pairs of words,
* repetition: the fraction of 4-grams that occurred before in the same text,
* chrF of translations;

and for the whole run:

* self-BLEU: the similarity of the hypotheses of one prompt, for decoders that return several,
* passes through the model per new token,
* time: the median of the runs, as a multiple of the time of greedy search.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import typer
from command_line import Note, Out, Quick, Repeats, Threads
from measuring import in_turns
from record import circumstances, place, summary, write
from rich.console import Console
from rich.table import Table
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sentence_pairs import read_pairs, references

import decodekit as dk

SEVERAL = 4  # hypotheses per prompt, for decoders that can return several
OPENINGS = (
    "Once upon a time there was a king who had",
    "Long ago, in a far country, there lived a poor woodcutter and",
    "The princess looked out of the window and saw",
    "In the middle of the forest stood a little house, and",
    "One day the youngest brother said to his father,",
    "When the dragon heard this it",
    "There was once a fisherman who caught",
    "The old woman gave him a golden ring and said",
    "Far beyond the sea lay an island where",
    "As soon as the sun rose the two sisters",
    "The wolf knocked at the door and",
    "At last they came to a great castle, whose gates",
)
Make = Callable[[int], dk.Decoder[Any, Any] | dk.CustomLoop[Any]]
# Name, a function from the number of prompts to the decoder, and processors.
Strategy = tuple[str, Make, tuple[dk.LogitsProcessor, ...]]

DECODERS: tuple[Strategy, ...] = (
    ("Greedy", lambda n: dk.Greedy(), ()),  # noqa: ARG005 - the number of prompts
    ("Greedy, NoRepeatNGram(3)", lambda n: dk.Greedy(), (dk.NoRepeatNGram(3),)),  # noqa: ARG005
    ("BeamSearch(4)", lambda n: dk.BeamSearch(4, num_return=SEVERAL), ()),  # noqa: ARG005
    ("BeamSearch(4), NoRepeatNGram(3)", lambda n: dk.BeamSearch(4, num_return=4), (dk.NoRepeatNGram(3),)),  # noqa: ARG005
    ("BeamSearch(16)", lambda n: dk.BeamSearch(16, num_return=SEVERAL), ()),  # noqa: ARG005
    (
        "BeamSearch(4, DiverseSiblings(0.5))",
        lambda n: dk.BeamSearch(4, expansion=dk.DiverseSiblings(0.5), num_return=SEVERAL),  # noqa: ARG005
        (),
    ),
    (
        "BeamSearch(4, UIDVariance(1))",
        lambda n: dk.BeamSearch(4, scorer=dk.UIDVariance(1.0), num_return=SEVERAL),  # noqa: ARG005
        (),
    ),
    ("DiverseBeamSearch(4, groups=4)", lambda n: dk.DiverseBeamSearch(4, 4, num_return=SEVERAL), ()),  # noqa: ARG005
    ("StochasticBeamSearch(4)", lambda n: dk.StochasticBeamSearch(4, seeds=range(n)), ()),
    ("ConditionalPoissonBeams(4)", lambda n: dk.ConditionalPoissonBeams(4, seeds=range(n)), ()),
    ("Sample(4)", lambda n: dk.Sample(SEVERAL, seeds=range(n)), ()),
    ("Sample(4), TopP(0.9)", lambda n: dk.Sample(SEVERAL, seeds=range(n)), (dk.TopP(0.9),)),
    ("Sample(4), Temperature(0.7)", lambda n: dk.Sample(SEVERAL, seeds=range(n)), (dk.Temperature(0.7),)),
    (
        "ArithmeticSample(4), TopP(0.9)",
        lambda n: dk.ArithmeticSample(SEVERAL, seeds=range(n)),
        (dk.TopP(0.9),),
    ),
    ("UniqueSample(4), TopP(0.9)", lambda n: dk.UniqueSample(SEVERAL, seeds=range(n)), (dk.TopP(0.9),)),
    ("ContrastiveSearch(4, 0.6)", lambda n: dk.ContrastiveSearch(4, 0.6), ()),  # noqa: ARG005
    ("DoLa", lambda n: dk.DoLa(layers="low"), ()),  # noqa: ARG005
    ("CoTDecoding(4)", lambda n: dk.CoTDecoding(SEVERAL), ()),  # noqa: ARG005
    ("Speculative(PromptLookup())", lambda n: dk.Speculative(dk.PromptLookup()), ()),  # noqa: ARG005
    ("BestFirst(), 100 nodes", lambda n: dk.BestFirst(max_nodes=100), ()),  # noqa: ARG005
)


@contextmanager
def counted(model: dk.HFModel) -> Iterator[list[int]]:
    """A context that counts passes through the model."""
    passes = [0]

    def count(*_: object) -> None:
        passes[0] += 1

    handle = model.model.register_forward_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


def distinct(texts: list[str], size: int) -> float:
    """The fraction of distinct n-grams of words in a text, averaged over the texts."""
    shares = []
    for text in texts:
        words = text.split()
        grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
        shares += [len(set(grams)) / len(grams)] if grams else []
    return mean(shares) if shares else 1.0


def repetition(rows: list[list[int]], size: int = 4) -> float:
    """The fraction of n-grams of tokens that occurred before in the same text."""
    said = repeated = 0
    for tokens in rows:
        counts = Counter(tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1))
        said += sum(counts.values())
        repeated += sum(count - 1 for count in counts.values())
    return repeated / said if said else 0.0


def self_bleu(rows: list[list[str]]) -> float | None:
    """Mean BLEU of each text against the other texts of its prompt; None if every prompt has one text."""
    bleu = BLEU(effective_order=True)
    scores = [
        bleu.sentence_score(text, texts[:place] + texts[place + 1 :]).score
        for texts in rows
        for place, text in enumerate(texts)
        if len(texts) > 1
    ]
    return mean(scores) if scores else None


def run(
    model: dk.HFModel,
    prompts: list[str],
    strategy: Strategy,
    new: int,
    repeats: int,
) -> tuple[dict[str, Any], list[str]]:
    """The measurements of one decoder, and its first texts."""
    name, make, processors = strategy

    def search() -> dk.Decoded:
        return dk.decode(model, prompts, make(len(prompts)), processors, max_new_tokens=new)

    with counted(model) as passes:
        out = search()  # warms up, too
    told = summary(in_turns({name: search}, repeats), "s")
    assert out.texts is not None  # noqa: S101 - both models have a tokenizer
    found = [row for row in range(len(prompts)) if bool(out.valid[row, 0])]
    first = [out.texts[row][0] if out.texts[row] else "" for row in range(len(prompts))]
    measured = {
        "name": name,
        "log_prob_per_token": mean(
            float(out.log_prob[row, 0]) / max(int(out.lengths[row, 0]), 1) for row in found
        )
        if found
        else None,
        "distinct_1": distinct(first, 1),
        "distinct_2": distinct(first, 2),
        "repetition": repetition([out.hypotheses()[row][0] for row in found]),
        "self_bleu": self_bleu(out.texts),
        "passes_per_token": passes[0] / max(int(out.lengths.max()), 1),
        "median_s": told["median_s"][name],
        "quartiles_s": told["quartiles_s"][name],
    }
    return measured, first


def translated(
    model: dk.HFModel,
    sentences: list[str],
    columns: list[list[str]],
    strategy: Strategy,
    repeats: int,
) -> dict[str, Any] | None:
    """The measurements of one decoder on translations; None if it does not support encoder-decoders."""
    try:
        found, texts = run(model, sentences, strategy, new=40, repeats=repeats)
    except dk.ModelError:
        return None
    return found | {"chrf": CHRF().corpus_score(texts, columns).score}


def test_sentences(pairs: Path, number: int) -> tuple[list[str], list[list[str]]]:
    """Held-out sentences, spread evenly over all of them, and their references in sacrebleu's format."""
    known = references(read_pairs(pairs).test)
    chosen = sorted(known)[:: max(len(known) // number, 1)][:number]
    most = max(len(known[text]) for text in chosen)
    return chosen, [[(known[text] * most)[place] for text in chosen] for place in range(most)]


def main(
    pairs: Annotated[
        Path | None, typer.Argument(help="The archive of sentence pairs. Without it, only stories.")
    ] = None,
    *,
    repeats: Repeats = 3,
    sentences: Annotated[int, typer.Option(help="Test sentences to translate.")] = 64,
    new: Annotated[int, typer.Option(help="New tokens per story.")] = 64,
    threads: Threads = 1,
    note: Note = "",
    quick: Quick = False,
    out: Out = None,
) -> None:
    """Measure every decoder, print a table and write the JSON."""
    torch.set_num_threads(threads)
    openings = list(OPENINGS)
    if quick:
        openings, repeats, new = openings[:2], 1, 3
    rows: list[dict[str, Any]] = []
    stories, translator = dk.load(), dk.load("en-fr")
    chosen, columns = ([], []) if pairs is None else test_sentences(pairs, sentences)
    for strategy in DECODERS:
        found, _ = run(stories, openings, strategy, new, repeats)
        rows.append({"name": strategy[0], "stories": found})
        if chosen:
            rows[-1]["translation"] = translated(translator, chosen, columns, strategy, repeats)
        print(strategy[0], f"{found['median_s']:.2f} s", flush=True)
    for part in ("stories", "translation") if chosen else ("stories",):
        for row in rows:
            if row[part] is not None:
                row[part]["time"] = row[part]["median_s"] / rows[0][part]["median_s"]
    show(rows)
    record = circumstances("cpu", threads, repeats, ["sacrebleu"], note) | {
        "openings": len(openings),
        "new": new,
        "sentences": len(chosen),
        "decoders": rows,
    }
    write(place(out, "decoders.json", quick=quick), record)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table of stories."""
    table = Table(title="Stories")
    for heading in ("decoder", "log-prob", "distinct-2", "repetition", "self-BLEU", "passes", "time"):
        table.add_column(heading)
    for row in rows:
        story = row["stories"]
        numbers = [story[key] for key in ("log_prob_per_token", "distinct_2", "repetition", "self_bleu")]
        numbers += [story["passes_per_token"], story["time"]]
        table.add_row(row["name"], *("-" if number is None else f"{number:.2f}" for number in numbers))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
