"""Counts of n-grams, and what two texts have in common."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Counts(NamedTuple):
    """How often each n-gram of some length stands in a text, or in the mean of some.

    Attributes:
        of: By n-gram.
        total: Of all.
    """

    of: Mapping[Any, float]
    total: float


def count_ngrams(units: Sequence[Any], order: int) -> Counts:
    """Counts the n-grams of `order` units: the characters of a string, the words of a tuple."""
    starts = range(len(units) - order + 1)
    return Counts(Counter(units[start : start + order] for start in starts), len(starts))


def mean_counts(texts: Iterable[Sequence[Counts]], weights: Iterable[float]) -> list[Counts]:
    """The weighted mean of several texts' counts, order by order.

    Args:
        texts: Every text's counts, one an order.
        weights: One a text; they sum to 1.
    """
    sums: list[dict[Any, float]] = []
    for text, weight in zip(texts, weights, strict=True):
        sums = sums or [{} for _ in text]
        for mean, counts in zip(sums, text, strict=True):
            for ngram, count in counts.of.items():
                mean[ngram] = mean.get(ngram, 0.0) + weight * count
    return [Counts(mean, sum(mean.values())) for mean in sums]


def matches(hypothesis: Counts, reference: Counts) -> float:
    """How many of the hypothesis's n-grams the reference has, each as often as it has it at most."""
    wanted = reference.of
    return sum(min(count, wanted[ngram]) for ngram, count in hypothesis.of.items() if ngram in wanted)
