"""Utilities from counts of common n-grams."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor
from typing_extensions import override

from decodekit.rerank.utility import AggregableUtility


class Counts(NamedTuple):
    """Counts of the n-grams of one order in a text, or their mean over several texts."""

    of: Mapping[Any, float]  # number of occurrences of each n-gram
    total: float  # sum of all counts


class NGrams(NamedTuple):
    """Counts of n-grams by order, and the number of units, for a text or as a mean over several texts."""

    orders: list[Counts]
    length: float


class NGramUtility(AggregableUtility):
    """A utility that counts the n-grams of every text once, for any number of pairs."""

    @abstractmethod
    def count(self, text: str) -> NGrams:
        """Count the n-grams of a text."""

    @abstractmethod
    def compare(self, hypothesis: NGrams, reference: NGrams) -> float:
        """Return the utility of a hypothesis under a reference."""

    @override
    def pairwise(self, hypotheses: Sequence[Any], references: Sequence[Any]) -> Float64[Tensor, "hyps refs"]:
        counted = {text: self.count(text) for text in {*hypotheses, *references}}
        rows = [[self.compare(counted[hyp], counted[ref]) for ref in references] for hyp in hypotheses]
        return torch.tensor(rows, dtype=torch.float64).view(len(hypotheses), len(references))

    @override
    def aggregated(
        self, hypotheses: Sequence[Any], references: Sequence[Any], weights: Float64[Tensor, " refs"]
    ) -> Float64[Tensor, " hyps"]:
        mean = mean_counts([self.count(text) for text in references], weights.tolist())
        utilities = [self.compare(self.count(text), mean) for text in hypotheses]
        return torch.tensor(utilities, dtype=torch.float64)


def count_ngrams(units: Sequence[Any], max_order: int) -> list[Counts]:
    """Count n-grams of characters (of a string) or words (of a tuple), for each order, 1 first."""
    counts = []
    for order in range(1, max_order + 1):
        starts = range(len(units) - order + 1)
        counts.append(Counts(Counter(units[start : start + order] for start in starts), len(starts)))
    return counts


def mean_counts(texts: Sequence[NGrams], weights: Sequence[float]) -> NGrams:
    """Return the weighted mean of several texts' counts and lengths; the weights sum to 1."""
    sums: list[dict[Any, float]] = []
    for text, weight in zip(texts, weights, strict=True):
        sums = sums or [{} for _ in text.orders]
        for mean, counts in zip(sums, text.orders, strict=True):
            for ngram, count in counts.of.items():
                mean[ngram] = mean.get(ngram, 0.0) + weight * count
    length = sum(weight * text.length for text, weight in zip(texts, weights, strict=True))
    return NGrams([Counts(mean, sum(mean.values())) for mean in sums], length)


def matches(hypothesis: Counts, reference: Counts) -> float:
    """Count the n-grams that both texts have, each at most as often as it occurs in the reference."""
    theirs = reference.of
    return sum(min(count, theirs[ngram]) for ngram, count in hypothesis.of.items() if ngram in theirs)
