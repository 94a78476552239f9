"""Records the results of mbrs 0.1.8: expected utilities and winners, as `mbrs.json` beside this file.

mbrs wants another numpy and another transformers than decodekit, so it needs an environment of its own:

    python3.11 -m venv mbrs_env
    mbrs_env/bin/pip install torch==2.13.0 "numpy<2" "transformers<5" "setuptools<81" mbrs==0.1.8
    mbrs_env/bin/python tests/rerank/record_mbrs.py

Hypotheses and references of a case differ from each other: decodekit compares each pair once, and counts a
text by its probability and not by its count in a list.
"""

import json
import random
from pathlib import Path
from typing import Any

import torch
from mbrs.decoders import DecoderAggregateMBR, DecoderMBR, DecoderPruningMBR
from mbrs.metrics import MetricBLEU, MetricChrF

METRICS = {
    "chrF": MetricChrF(MetricChrF.Config(num_workers=1)),
    "chrF++": MetricChrF(MetricChrF.Config(num_workers=1, word_order=2)),
    "BLEU": MetricBLEU(MetricBLEU.Config(num_workers=1)),
}
PRUNING = DecoderPruningMBR.Config(
    alpha=0.9, sampling_scheduler=[2, 4, 8, 16], num_bootstrap_samples=100, seed=3
)
SENTENCES = [
    "The old king had three daughters, and the youngest was so beautiful that the sun itself wondered.",
    "She said: “I will not go home until you have told me where the golden ball is!”",
    "There was once a poor miller who owned nothing but a cat.",
    "In 1812, the two brothers (from Hanau) published their first book of tales for children.",
    "Yes.",
    "Le chat noir n'a pas mangé la souris, mais il l'a vue.",
    "Wolves don't eat straw; goats do, if there is no grass left.",
]
WORDS = ["the", "a", "old", "not", "king", "cat,", "went", "home", "very", "dark.", "so", "and"]


def variant(sentence: str, stream: random.Random) -> str:
    """The sentence with a few words left out, exchanged, added or written differently."""
    words = sentence.split()
    for _ in range(stream.randint(0, 5)):
        place = stream.randrange(len(words))
        change = stream.randrange(5)
        if change == 0 and len(words) > 1:
            del words[place]
        elif change == 1:
            words[place] = stream.choice(WORDS)
        elif change == 2:
            words.insert(place, stream.choice(WORDS))
        elif change == 3:
            words[place] = words[place].swapcase()
        else:
            other = stream.randrange(len(words))
            words[place], words[other] = words[other], words[place]
    return " ".join(words)


def variants(sentence: str, number: int, stream: random.Random) -> list[str]:
    """Different variants of a sentence."""
    found: dict[str, None] = {}
    while len(found) < number:
        found[variant(sentence, stream)] = None
    return list(found)


def scores(output: Any, number: int) -> list[float]:  # noqa: ANN401
    """Every hypothesis's score, in the order in which they were given."""
    places = dict(zip(output.idx, output.score, strict=True))
    return [round(places[place], 4) for place in range(number)]


def answers(
    hypotheses: list[str], references: list[str], log_probs: list[float]
) -> dict[str, list[float] | int]:
    """Expected utilities by every metric and in every way, and the winners of pruning."""
    found: dict[str, list[float] | int] = {}
    number = len(hypotheses)
    for name, metric in METRICS.items():
        for way, kind in (("pairs", DecoderMBR), ("mean", DecoderAggregateMBR)):
            decoder = kind(kind.Config(), metric)
            for weights, given in (("uniform", None), ("probability", torch.tensor(log_probs))):
                output = decoder.decode(hypotheses, references, nbest=number, reference_lprobs=given)
                found[f"{name} {way} {weights}"] = scores(output, number)
        pruned = DecoderPruningMBR(PRUNING, metric).decode(hypotheses, references, nbest=1)
        found[f"{name} pruned"] = pruned.idx[0]
    return found


def main() -> None:
    """Writes the file."""
    stream = random.Random(0)  # noqa: S311 - test data
    cases = []
    for number in range(28):
        sentence = SENTENCES[number % len(SENTENCES)]
        hypotheses = variants(sentence, stream.randint(2, 9), stream)
        references = variants(sentence, stream.randint(1, 16), stream) if number % 2 else hypotheses
        log_probs = [round(stream.uniform(-12, -1), 3) for _ in references]
        cases.append(
            {
                "hypotheses": hypotheses,
                "references": references,
                "log_probs": log_probs,
                "answers": answers(hypotheses, references, log_probs),
            }
        )
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    Path(__file__).with_name("mbrs.json").write_text(f'{{"mbrs": "0.1.8", "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
