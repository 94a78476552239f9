"""Expected utility of one prompt's hypotheses."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from decodekit.errors import DecodekitError
from decodekit.rerank.utility import AggregableUtility, Utility


class ExpectedUtilities(NamedTuple):
    """Expected utilities of one prompt's hypotheses, and the cost of computing them.

    Attributes:
        expected: Of every hypothesis.
        rounds: Rounds of pruning that each survived.
        calls: Utilities that were computed.
        saved: Pairs of different texts that were not.
    """

    expected: list[float]
    rounds: list[int]
    calls: int
    saved: int


class References(NamedTuple):
    """Pseudo-references of one prompt.

    Attributes:
        unique: Different texts or lists of ids, in an order that does not depend on the given one.
        weights: Of each different one.
        indices: The index in `unique` of every reference, in the given order.
    """

    unique: list[Any]
    weights: list[float]
    indices: list[int]


# From a function of some hypotheses and references to their utilities, and the numbers of hypotheses and of
# references, to every hypothesis's expected utility and rounds survived.
Prune = Callable[[Callable[[list[int], list[int]], Tensor], int, int], tuple[Tensor, Tensor]]


def weigh_uniformly(texts: list[Any]) -> References:
    """Weigh every reference the same, so that a text counts as often as it occurs."""
    unique, indices = deduplicate(texts)
    occurrences = Counter(indices)
    return References(unique, [float(occurrences[index]) for index in range(len(unique))], indices)


def weigh_by_probability(texts: list[Any], ids: list[list[int]], log_probs: list[float]) -> References:
    """Weigh every text by the summed probability of its different sequences of ids."""
    unique, indices = deduplicate(texts)
    sequences: dict[tuple[int, ...], tuple[int, float]] = {}
    for index, sequence, log_prob in zip(indices, map(tuple, ids), log_probs, strict=True):
        _, before = sequences.get(sequence, (index, -math.inf))
        sequences[sequence] = index, max(before, log_prob)
    best = max((log_prob for _, log_prob in sequences.values()), default=0.0)
    terms: list[list[float]] = [[] for _ in unique]
    for index, log_prob in sequences.values():
        terms[index].append(math.exp(log_prob - best))
    return References(unique, list(map(math.fsum, terms)), indices)


def deduplicate(texts: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """Return the different texts in a fixed order, and the index of each given one among them."""
    keys = [text if isinstance(text, str) else tuple(text) for text in texts]
    by_key = dict(zip(keys, texts, strict=True))
    index = {key: number for number, key in enumerate(sorted(by_key))}
    return [by_key[key] for key in index], [index[key] for key in keys]


def compare_all(utility: Utility, hypotheses: list[Any], references: References) -> ExpectedUtilities:
    """Compare every hypothesis with every reference."""
    unique, indices = deduplicate(hypotheses)
    table = _pairwise(utility, unique, references.unique)
    total = math.fsum(references.weights)
    # Exactly rounded sums: neither the order of references nor their repetition can break a tie.
    expected = [
        math.fsum(map(float.__mul__, references.weights, utilities)) / total for utilities in table.tolist()
    ]
    return ExpectedUtilities([expected[index] for index in indices], [0] * len(indices), table.numel(), 0)


def compare_with_mean(
    utility: AggregableUtility, hypotheses: list[Any], references: References
) -> ExpectedUtilities:
    """Compare every hypothesis with the mean of the references."""
    unique, indices = deduplicate(hypotheses)
    weights = torch.tensor(references.weights, dtype=torch.float64) / math.fsum(references.weights)
    utilities = utility.aggregated(unique, references.unique, weights)
    expected = _checked(utility, utilities, (len(unique),)).tolist()
    saved = len(unique) * len(references.unique) - len(unique)
    return ExpectedUtilities([expected[index] for index in indices], [0] * len(indices), len(unique), saved)


def compare_pruned(
    utility: Utility, hypotheses: list[Any], references: References, prune: Prune
) -> ExpectedUtilities:
    """Compare hypotheses that may still win with more and more references."""
    unique, indices = deduplicate(hypotheses)
    table = torch.full((len(unique), len(references.unique)), torch.nan, dtype=torch.float64)
    calls = 0

    def utilities(remaining: list[int], drawn: list[int]) -> Float64[Tensor, "remaining drawn"]:
        nonlocal calls
        columns = [references.indices[number] for number in drawn]
        # Hypotheses are only ever dropped, so a reference is new to all the remaining ones or to none.
        new = sorted({column for column in columns if table[remaining[0], column].isnan()})
        found = _pairwise(
            utility, [unique[row] for row in remaining], [references.unique[column] for column in new]
        )
        calls += found.numel()
        rows = torch.tensor(remaining)[:, None]
        table[rows, torch.tensor(new, dtype=torch.long)] = found
        return table[rows, torch.tensor(columns)]

    expected, rounds = prune(utilities, len(unique), len(references.indices))
    return ExpectedUtilities(
        [float(expected[index]) for index in indices],
        [int(rounds[index]) for index in indices],
        calls,
        table.numel() - calls,
    )


def _pairwise(utility: Utility, hypotheses: list[Any], references: list[Any]) -> Float64[Tensor, "hyps refs"]:
    return _checked(utility, utility.pairwise(hypotheses, references), (len(hypotheses), len(references)))


def _checked(utility: Utility, utilities: object, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(utilities, Tensor) or utilities.shape != shape or not utilities.isfinite().all():
        given = f"shape {tuple(utilities.shape)}" if isinstance(utilities, Tensor) else repr(utilities)
        has_shape = isinstance(utilities, Tensor) and utilities.shape == shape
        raise DecodekitError(
            f"{type(utility).__name__}: utilities must be finite numbers of shape {shape}, got {given:.80}"
            f"{', some not finite' if has_shape else ''}."
        )
    return utilities.detach().cpu().double()
