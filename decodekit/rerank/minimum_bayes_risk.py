"""Minimum Bayes risk decoding."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from decodekit.core.result import Decoded
from decodekit.core.validation import checked_options, shown
from decodekit.errors import DecodekitError
from decodekit.rerank._shared.hypotheses import (
    check_decoded,
    hashable,
    in_order,
    rank,
    read_hypotheses,
    reorder,
    valid_values,
)
from decodekit.rerank.pruning import Pruning
from decodekit.rerank.utility import AggregableUtility, Utility, UtilityFunction


class ExpectedUtilities(NamedTuple):
    """Expected utilities of one prompt's hypotheses, and the cost of computing them."""

    expected: list[float]
    rounds: list[int]  # rounds of pruning that each hypothesis survived
    calls: int
    saved: int


class References(NamedTuple):
    """Pseudo-references of one prompt: the different texts or lists of ids, in a fixed order."""

    unique: list[Any]
    weights: list[float]  # the weight of each distinct reference
    indices: list[int]  # index in `unique` of every given reference


def weigh_uniformly(texts: list[Any]) -> References:
    """Give every reference the same weight: a repeated text counts several times."""
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
    keys = list(map(hashable, texts))
    by_key = dict(zip(keys, texts, strict=True))
    index = {key: number for number, key in enumerate(sorted(by_key))}
    return [by_key[key] for key in index], [index[key] for key in keys]


def _compare_pruned(
    utility: Utility, hypotheses: list[Any], references: References, pruning: Pruning, seed: int
) -> tuple[list[float], list[int], int]:
    """Return expected utilities, rounds survived, and the number of comparisons."""
    table = torch.full((len(hypotheses), len(references.unique)), torch.nan, dtype=torch.float64)

    def utilities(remaining: list[int], drawn: list[int]) -> Float64[Tensor, "remaining drawn"]:
        columns = [references.indices[number] for number in drawn]
        # Hypotheses are only dropped, so a reference is new to all remaining hypotheses or to none.
        new = sorted({column for column in columns if table[remaining[0], column].isnan()})
        found = _pairwise(
            utility, [hypotheses[row] for row in remaining], [references.unique[column] for column in new]
        )
        rows = torch.tensor(remaining)[:, None]
        table[rows, torch.tensor(new, dtype=torch.long)] = found
        return table[rows, torch.tensor(columns)]

    expected, rounds = pruning.prune(utilities, len(hypotheses), len(references.indices), seed)
    return expected.tolist(), rounds.tolist(), int(table.isfinite().sum())


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


@dataclass(frozen=True, eq=False, kw_only=True)
class RiskReport:
    """Cost of `mbr`, in `Decoded.report`.

    Attributes:
        calls: Comparisons of a hypothesis with a reference, or with the mean reference, per prompt.
        saved: Pairs of different texts that were not compared.
        rounds: Rounds of pruning that each hypothesis survived, in the new order; 0 without pruning.

    Example:
        >>> model = dk.testing.MarkovModel([[0.5, 0.5], [0.5, 0.5]])
        >>> out = dk.decode(model, [[0]], dk.BeamSearch(4, num_return=4), max_new_tokens=2)
        >>> dk.mbr(out, lambda hypothesis, reference: hypothesis == reference).report.calls
        tensor([16])
    """

    calls: Int64[Tensor, " batch"]
    saved: Int64[Tensor, " batch"]
    rounds: Int64[Tensor, "batch hyps"]


@checked_options
def mbr(
    out: Decoded,
    utility: Utility | Callable[[Any, Any], float],
    *,
    references: Decoded | None = None,
    weights: Literal["uniform", "probability"] = "uniform",
    aggregate: bool = False,
    pruning: Pruning | None = None,
) -> Decoded[RiskReport]:
    r"""Ranks hypotheses by their expected utility under the model.

    The expected utility is $\sum_r w_r\, u(h, r)$ over pseudo-references $r$: the hypotheses themselves, or
    the hypotheses of another run. A hypothesis is compared with itself too. Each pair of different texts is
    compared once. Ties go to the likelier hypothesis.

    Args:
        out: The hypotheses, samples or beams.
        utility: `ChrF`, `BLEU`, `Cosine`, or a function of a hypothesis and a reference, larger is better.
            The function takes texts if there are any, else lists of ids (`UtilityFunction` has the choice).
        references: Another run over the same prompts; None: the hypotheses themselves.
        weights: `"uniform"`, for samples: every reference has the same weight. `"probability"`, for beams:
            each distinct reference has its probability as weight.
        aggregate: True: compares with the mean of the references in place of each of them. The cost is linear
            in their number. Exact for `Cosine`, an approximation for `ChrF` and `BLEU`.
        pruning: Drops hypotheses that are unlikely to win. Only with uniform weights, since it draws
            references. Dropped hypotheses come last, the latest dropped first, with the expected utility
            under the references until then.

    Returns:
        The hypotheses, best first; `score` is the expected utility, `report` a `RiskReport`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If `weights` is unknown, or options exclude each other.
        DecodekitError: If a prompt has hypotheses and no references, `references` has other prompts, the
            utility reads texts and there are none, or it does not return finite numbers.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon a time", dk.Sample(8, seeds=[3]), max_new_tokens=8)
        >>> best = dk.mbr(out, dk.ChrF())
        >>> best.texts[0][0] in out.texts[0], bool((best.score.diff() <= 0).all())
        (True, True)

    Source:
        Kumar & Byrne, 2004, https://aclanthology.org/N04-1022; over samples: Eikema & Aziz, 2020,
        https://aclanthology.org/2020.coling-main.398. `aggregate`: DeNero et al., 2009,
        https://aclanthology.org/P09-1064; Vamvas & Sennrich, 2024, https://arxiv.org/abs/2402.04251.
        `pruning`: Cheng & Vlachos, 2023, https://arxiv.org/abs/2311.14919.

    Hugging Face:
        None.
    """
    check_decoded("mbr", "out", out)
    utility = utility if isinstance(utility, Utility) else UtilityFunction(utility)
    references = out if references is None else references
    check_decoded("mbr", "references", references)
    _check_options(utility, weights, aggregate=aggregate, pruning=pruning)
    if len(references.valid) != len(out.valid):
        raise DecodekitError(
            f"mbr: references must be of the same prompts, got {len(references.valid)} prompts for "
            f"{len(out.valid)}."
        )
    hypotheses, pseudo = _read(utility, out, references, weights)
    seeds = (pruning or Pruning()).seeds_of(len(hypotheses))
    results = [
        _compare(utility, row, row_references, aggregate=aggregate, pruning=pruning, seed=seed)
        for row, row_references, seed in zip(hypotheses, pseudo, seeds, strict=True)
    ]
    order = rank(out, [[*zip(row.rounds, row.expected, strict=True)] for row in results])
    rounds = in_order(out, order, [row.rounds for row in results])
    report = RiskReport(
        calls=torch.tensor([row.calls for row in results]),
        saved=torch.tensor([row.saved for row in results]),
        rounds=rounds.clamp(min=0).long().cpu(),
    )
    return reorder(out, order, [row.expected for row in results], report)


def _check_options(utility: Utility, weights: str, *, aggregate: bool, pruning: Pruning | None) -> None:
    if weights not in {"uniform", "probability"}:
        raise ValueError(f"mbr: weights must be 'uniform' or 'probability', got {weights!r}.")
    if pruning is not None and not isinstance(pruning, Pruning):
        raise TypeError(f"mbr: pruning must be a Pruning or None, got {shown(pruning)}.")
    if aggregate and not isinstance(utility, AggregableUtility):
        raise TypeError(
            f"mbr: aggregate needs a utility that takes the mean of references, as ChrF, BLEU and Cosine do, "
            f"got {type(utility).__name__}."
        )
    if pruning is not None and aggregate:
        raise ValueError("mbr: pruning saves nothing if references are aggregated. Choose one of them.")
    if pruning is not None and weights != "uniform":
        raise ValueError(
            "mbr: pruning draws references as samples, so weights must be 'uniform', got 'probability'."
        )


def _read(
    utility: Utility, out: Decoded, references: Decoded, weights: str
) -> tuple[list[list[Any]], list[References]]:
    """Return every prompt's hypotheses and pseudo-references, as texts or as ids."""
    ids = utility.ids
    if ids is None:  # the same for both results
        ids = out.texts is None or references.texts is None
    hypotheses, pseudo = (read_hypotheses("mbr", result, ids=ids) for result in (out, references))
    for number, row in enumerate(hypotheses):
        if row and not pseudo[number]:
            raise DecodekitError(f"mbr: prompt {number} has no reference. Every prompt must have one.")
    if weights == "uniform":
        return hypotheses, list(map(weigh_uniformly, pseudo))
    log_probs = valid_values(references, references.log_prob.tolist())
    return hypotheses, list(map(weigh_by_probability, pseudo, references.hypotheses(), log_probs))


def _compare(
    utility: Utility,
    hypotheses: list[Any],
    references: References,
    *,
    aggregate: bool,
    pruning: Pruning | None,
    seed: int,
) -> ExpectedUtilities:
    """Return the expected utilities of one prompt's hypotheses; equal ones are compared once."""
    if not hypotheses:
        return ExpectedUtilities([], [], calls=0, saved=0)
    unique, indices = deduplicate(hypotheses)
    total, rounds = math.fsum(references.weights), [0] * len(unique)
    if pruning is not None:
        expected, rounds, calls = _compare_pruned(utility, unique, references, pruning, seed)
    elif aggregate and isinstance(utility, AggregableUtility):
        weights = torch.tensor(references.weights, dtype=torch.float64) / total
        utilities = utility.aggregated(unique, references.unique, weights)
        expected, calls = _checked(utility, utilities, (len(unique),)).tolist(), len(unique)
    else:
        table = _pairwise(utility, unique, references.unique)
        # Exactly rounded sums: neither the order of references nor their repetition can break a tie.
        expected = [math.fsum(map(float.__mul__, references.weights, row)) / total for row in table.tolist()]
        calls = table.numel()
    return ExpectedUtilities(
        [expected[index] for index in indices],
        [rounds[index] for index in indices],
        calls,
        saved=len(unique) * len(references.unique) - calls,
    )
