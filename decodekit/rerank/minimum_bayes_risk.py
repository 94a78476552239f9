"""Minimum Bayes risk: the hypothesis that agrees most with the others."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from decodekit.core.result import Decoded
from decodekit.errors import DecodekitError
from decodekit.rerank._shared.expected_utility import (
    Compared,
    References,
    compare_all,
    compare_some,
    compare_with_mean,
    weigh_by_probability,
    weigh_uniformly,
)
from decodekit.rerank._shared.ranking import rank, reorder, valid_numbers
from decodekit.rerank._shared.text_inputs import check_decoded, read_hypotheses
from decodekit.rerank.pruning import Pruning
from decodekit.rerank.utility import AggregableUtility, Utility
from decodekit.rerank.utility_function import UtilityFunction


@dataclass(frozen=True, eq=False, kw_only=True)
class RiskReport:
    """What minimum Bayes risk took: what `mbr` leaves in `Decoded.report`.

    Attributes:
        calls: Pairs of a hypothesis and a reference that were compared, for every prompt; with mean
            references, hypotheses.
        saved: Pairs of different texts that did not have to be.
        rounds: Rounds of pruning that each hypothesis survived, in the new order; 0 without pruning.

    Example:
        >>> model = dk.testing.MarkovModel([[0.5, 0.5], [0.5, 0.5]])
        >>> out = dk.decode(model, [[0]], dk.BeamSearch(4, num_return=4), max_new_tokens=2)
        >>> dk.mbr(out, lambda one, other: one == other).report.calls
        tensor([16])
    """

    calls: Int64[Tensor, " batch"]
    saved: Int64[Tensor, " batch"]
    rounds: Int64[Tensor, "batch hyps"]


def mbr(
    out: Decoded,
    utility: Utility | Callable[[Any, Any], float],
    *,
    references: Decoded | None = None,
    weights: Literal["uniform", "probability"] = "uniform",
    aggregate: bool = False,
    pruning: Pruning | None = None,
) -> Decoded:
    r"""Puts the hypothesis first that agrees most with what the model might say.

    Ranks by the expected utility $\sum_r w_r\, u(h, r)$ over pseudo-references $r$, which are what the model
    said: the hypotheses themselves, or those of another run. A hypothesis is compared with itself too. Each
    pair of different texts is compared once. Ties go to the likelier hypothesis.

    Args:
        out: The hypotheses, samples or beams.
        utility: `ChrF`, `BLEU`, `Cosine`, or a function of a hypothesis and a reference, larger is better: it
            is given texts where there are any, else lists of ids (`UtilityFunction` chooses).
        references: Another run over the same prompts; None: the hypotheses themselves.
        weights: `"uniform"`: every reference counts the same, which is right for samples. `"probability"`:
            as much as the model finds it likely, of all different references together; right for beams.
        aggregate: True: compares with the mean of the references instead of with each of them. Linear
            in their number; the same for `Cosine`, an approximation for `ChrF` and `BLEU`.
        pruning: Drops hypotheses that are unlikely to win; only with uniform weights, since it draws
            references. Those that are dropped stand behind the others, the later dropped first, with
            the expected utility by the references until then.

    Returns:
        The hypotheses, best first; `score` is the expected utility, `report` a `RiskReport`.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If `weights` is neither, or there are options that do not go together.
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
    judge = utility if isinstance(utility, Utility) else UtilityFunction(utility)
    others = out if references is None else references
    check_decoded("mbr", "references", others)
    _check_options(judge, weights, aggregate=aggregate, pruning=pruning)
    if len(others.valid) != len(out.valid):
        raise DecodekitError(
            f"mbr: references must be of the same prompts, got {len(others.valid)} prompts for "
            f"{len(out.valid)}."
        )
    said, pseudo = _read(judge, out, others, weights)
    found = [
        _compare(judge, hypotheses, own, aggregate=aggregate, pruning=pruning, seed=seed)
        for hypotheses, own, seed in zip(
            said, pseudo, (pruning or Pruning()).seeds_of(len(said)), strict=True
        )
    ]
    worth = [[*zip(row.rounds, row.expected, strict=True)] for row in found]
    order = rank(out, worth)
    rounds = torch.zeros_like(out.lengths, device="cpu")
    for row, (own, places) in enumerate(zip(found, order, strict=True)):
        rounds[row, : len(places)] = torch.tensor([own.rounds[number] for number in places])
    report = RiskReport(
        calls=torch.tensor([row.calls for row in found]),
        saved=torch.tensor([row.saved for row in found]),
        rounds=rounds,
    )
    return reorder(out, order, [row.expected for row in found], report)


def _check_options(utility: Utility, weights: str, *, aggregate: bool, pruning: Pruning | None) -> None:
    if weights not in {"uniform", "probability"}:
        raise ValueError(f"mbr: weights must be 'uniform' or 'probability', got {weights!r}.")
    if pruning is not None and not isinstance(pruning, Pruning):
        raise TypeError(f"mbr: pruning must be a Pruning or None, got {pruning!r:.80}.")
    if aggregate and not isinstance(utility, AggregableUtility):
        raise TypeError(
            f"mbr: aggregate needs a utility that takes the mean of references, as ChrF, BLEU and Cosine do, "
            f"got {type(utility).__name__}."
        )
    if pruning is not None and aggregate:
        raise ValueError("mbr: pruning saves nothing where references are aggregated. Choose one of them.")
    if pruning is not None and weights != "uniform":
        raise ValueError(
            "mbr: pruning draws references as samples, so weights must be 'uniform', got 'probability'."
        )


def _read(
    utility: Utility, out: Decoded, others: Decoded, weights: str
) -> tuple[list[list[Any]], list[References]]:
    """Every prompt's hypotheses and pseudo-references, in the form that the utility reads."""
    ids = utility.ids
    if ids is None:  # of one form
        ids = out.texts is None or others.texts is None
    said, expected = (read_hypotheses("mbr", result, ids=ids) for result in (out, others))
    for row, (hypotheses, pseudo) in enumerate(zip(said, expected, strict=True)):
        if hypotheses and not pseudo:
            raise DecodekitError(f"mbr: every prompt must have a reference, and prompt {row} has none.")
    if weights == "uniform":
        return said, [weigh_uniformly(texts) for texts in expected]
    rows = zip(expected, others.hypotheses(), valid_numbers(others, others.log_prob), strict=True)
    return said, [weigh_by_probability(*row) for row in rows]


def _compare(
    utility: Utility,
    hypotheses: list[Any],
    references: References,
    *,
    aggregate: bool,
    pruning: Pruning | None,
    seed: int,
) -> Compared:
    if not hypotheses:
        return Compared([], [], 0, 0)
    if aggregate and isinstance(utility, AggregableUtility):
        return compare_with_mean(utility, hypotheses, references)
    if pruning is None:
        return compare_all(utility, hypotheses, references)
    return compare_some(utility, hypotheses, references, partial(pruning.prune, seed=seed))
