"""The expected utility of one prompt's hypotheses."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from decodekit.errors import DecodekitError
from decodekit.rerank.utility import AggregableUtility, Utility


class Compared(NamedTuple):
    """What a comparison has found out about one prompt.

    Attributes:
        expected: Every hypothesis's expected utility.
        rounds: Rounds of pruning that each survived.
        calls: How many utilities were computed.
        saved: How many pairs of different texts were not.
    """

    expected: list[float]
    rounds: list[int]
    calls: int
    saved: int


class References(NamedTuple):
    """The pseudo-references of one prompt.

    Attributes:
        texts: Texts or lists of ids, as they come, some of them perhaps the same.
        different: Those that differ, in an order that does not depend on how they come.
        weights: How much each of these counts.
        places: Which of the different ones each is.
    """

    texts: list[Any]
    different: list[Any]
    weights: list[float]
    places: list[int]

    def shares(self) -> Float64[Tensor, " refs"]:
        """The weights over their sum."""
        return torch.tensor(self.weights, dtype=torch.float64) / math.fsum(self.weights)


# Chooses which hypotheses to compare with which references, and says what it has found.
Prune = Callable[[Callable[[list[int], list[int]], Tensor], int, int], tuple[Tensor, Tensor]]


def weigh_uniformly(texts: list[Any]) -> References:
    """Every reference counts the same, so a text counts as often as it was said."""
    different, places = different_ones(texts)
    said = Counter(places)
    return References(texts, different, [float(said[number]) for number in range(len(different))], places)


def weigh_by_probability(texts: list[Any], ids: list[list[int]], log_probs: list[float]) -> References:
    """Every reference counts as much as it is likely.

    The same ids said twice are no more likely for that; different ids of the same text are.
    """
    different, places = different_ones(texts)
    likeliest: dict[tuple[int, ...], tuple[int, float]] = {}
    for place, own, log_prob in zip(places, map(tuple, ids), log_probs, strict=True):
        _, before = likeliest.get(own, (place, -math.inf))
        likeliest[own] = place, max(before, log_prob)
    best = max((log_prob for _, log_prob in likeliest.values()), default=0.0)
    terms: list[list[float]] = [[] for _ in different]
    for place, log_prob in likeliest.values():
        terms[place].append(math.exp(log_prob - best))
    return References(texts, different, [math.fsum(some) for some in terms], places)


def different_ones(texts: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """Different texts in a fixed order, and which of them each given one is."""
    keys = [text if isinstance(text, str) else tuple(text) for text in texts]
    kept = dict(zip(keys, texts, strict=True))
    place = {key: number for number, key in enumerate(sorted(kept))}
    return [kept[key] for key in place], [place[key] for key in keys]


def compare_all(utility: Utility, hypotheses: list[Any], references: References) -> Compared:
    """Every hypothesis with every reference."""
    ones, places = different_ones(hypotheses)
    table = _pairwise(utility, ones, references.different)
    total = math.fsum(references.weights)
    # Exactly rounded sums: neither the order of references nor how often one was said can break a tie.
    expected = [
        math.fsum(map(float.__mul__, references.weights, utilities)) / total for utilities in table.tolist()
    ]
    return Compared([expected[place] for place in places], [0] * len(places), table.numel(), 0)


def compare_with_mean(utility: AggregableUtility, hypotheses: list[Any], references: References) -> Compared:
    """Every hypothesis with the mean of the references."""
    ones, places = different_ones(hypotheses)
    found = utility.aggregated(ones, references.different, references.shares())
    expected = _checked(utility, found, (len(ones),)).tolist()
    saved = len(ones) * len(references.different) - len(ones)
    return Compared([expected[place] for place in places], [0] * len(places), len(ones), saved)


def compare_some(utility: Utility, hypotheses: list[Any], references: References, prune: Prune) -> Compared:
    """Hypotheses that may still win with more and more references."""
    ones, places = different_ones(hypotheses)
    table = torch.full((len(ones), len(references.different)), torch.nan, dtype=torch.float64)
    calls = 0

    def utilities(left: list[int], seen: list[int]) -> Float64[Tensor, "left seen"]:
        nonlocal calls
        columns = [references.places[number] for number in seen]
        # Whoever is left was there before, so a reference is new to all or to none of them.
        new = sorted({column for column in columns if table[left[0], column].isnan()})
        found = _pairwise(
            utility, [ones[number] for number in left], [references.different[column] for column in new]
        )
        calls += found.numel()
        table[torch.tensor(left)[:, None], torch.tensor(new, dtype=torch.long)] = found
        return table[torch.tensor(left)[:, None], torch.tensor(columns)]

    expected, rounds = prune(utilities, len(ones), len(references.texts))
    return Compared(
        [float(expected[place]) for place in places],
        [int(rounds[place]) for place in places],
        calls,
        table.numel() - calls,
    )


def _pairwise(utility: Utility, ones: list[Any], others: list[Any]) -> Float64[Tensor, "hyps refs"]:
    return _checked(utility, utility.pairwise(ones, others), (len(ones), len(others)))


def _checked(utility: Utility, given: object, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(given, Tensor) or given.shape != shape or not given.isfinite().all():
        what = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
        raise DecodekitError(
            f"{type(utility).__name__}: utilities must be finite numbers of shape {shape}, got {what:.80}"
            f"{', some not finite' if isinstance(given, Tensor) and given.shape == shape else ''}."
        )
    return given.detach().cpu().double()
