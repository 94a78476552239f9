"""Self-consistency: voting on the answers of hypotheses."""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch

from decodekit.core.result import Decoded
from decodekit.core.validation import checked_options, shown
from decodekit.errors import DecodekitError
from decodekit.rerank._shared.hypotheses import check_decoded, rank, read_hypotheses, reorder, valid_values


@dataclass(frozen=True, eq=False, kw_only=True)
class Votes:
    """Votes of `self_consistency`, in `Decoded.report`.

    Attributes:
        answers: The different answers of every prompt, most votes first.
        votes: The number or total weight of each answer's hypotheses.
        answer_of: The answer of every valid hypothesis, in the new order; None if it has none.

    Example:
        >>> model = dk.testing.MarkovModel([[0.2, 0.8], [0.5, 0.5]])
        >>> out = dk.decode(model, [[0]], dk.BeamSearch(4, num_return=4), max_new_tokens=2)
        >>> dk.self_consistency(out, sum).report
        Votes(answers=[[1, 2, 0]], votes=[[2.0, 1.0, 1.0]])
    """

    answers: list[list[Hashable]]
    votes: list[list[float]]
    answer_of: list[list[Hashable | None]] = field(repr=False)


class _Tally(NamedTuple):
    """Votes of one prompt."""

    answers: list[Hashable]  # most votes first
    votes: list[float]  # of each answer
    shares: list[float]  # the fraction of all votes for each answer
    indices: list[int | None]  # index of each hypothesis's answer, or None


@checked_options
def self_consistency(
    out: Decoded,
    extract: Callable[[Any], Hashable | None],
    *,
    weights: Literal["uniform", "probability", "per_token"] = "uniform",
    ids: bool | None = None,
) -> Decoded[Votes]:
    r"""Ranks hypotheses by the votes for their answer, then by likelihood.

    The votes for answer $a$ are $\sum_i w_i [a_i = a]$ over the hypotheses, repeated ones included. Ties go
    to the answer of the likelier hypothesis. Hypotheses without an answer come last.

    Args:
        out: The hypotheses, usually samples.
        extract: Function from a hypothesis, as text if there is any, else as a list of ids, to its answer,
            which must be hashable, or to None.
        weights: The weight $w_i$ of a vote. `"uniform"`: 1. `"probability"`: $P(y_i \mid x)$. `"per_token"`:
            $P(y_i \mid x)^{1/|y_i|}$.
        ids: True: `extract` takes lists of ids; False: texts; None: texts if there are any.

    Returns:
        The hypotheses, best first; `score` is the answer's share of all votes, 0 without an answer; `report`
        is the `Votes`.

    Raises:
        TypeError: If `out` is not what `decode` returns or `extract` cannot be called.
        ValueError: If `weights` is unknown.
        DecodekitError: If an answer is not hashable, or texts are required and there are none.

    Example:
        >>> out = dk.decode(dk.load(), "There were", dk.Sample(9, seeds=[0]), dk.TopP(0.8), max_new_tokens=4)
        >>> best = dk.self_consistency(out, lambda text: "two" if "two" in text else None)
        >>> best.report.answers
        [['two']]

    Source:
        Wang et al., 2023, https://arxiv.org/abs/2203.11171, section 2 and table 1.

    Hugging Face:
        None.
    """
    check_decoded("self_consistency", "out", out)
    if not callable(extract):
        raise TypeError(f"self_consistency: extract must be callable, got {shown(extract)}.")
    log_probs = out.log_prob.double()
    log_weights = {
        "uniform": torch.zeros_like(log_probs),
        "probability": log_probs,
        "per_token": log_probs / out.lengths.clamp(min=1),
    }
    if weights not in log_weights:
        raise ValueError(
            f"self_consistency: weights must be 'uniform', 'probability' or 'per_token', got {weights!r}."
        )
    hypotheses = read_hypotheses("self_consistency", out, ids=ids)
    answers = [[_hashable(extract(hypothesis)) for hypothesis in row] for row in hypotheses]
    by_likelihood = rank(out, [[()] * len(row) for row in answers])
    tallies = list(map(_count, answers, valid_values(out, log_weights[weights].tolist()), by_likelihood))
    order = rank(out, [[(-math.inf if i is None else -i,) for i in tally.indices] for tally in tallies])
    scores = [[0.0 if i is None else tally.shares[i] for i in tally.indices] for tally in tallies]
    votes = Votes(
        answers=[tally.answers for tally in tallies],
        votes=[tally.votes for tally in tallies],
        answer_of=[[row[place] for place in places] for row, places in zip(answers, order, strict=True)],
    )
    return reorder(out, order, scores, votes)


def _hashable(answer: Any) -> Any:  # noqa: ANN401
    try:
        hash(answer)
    except TypeError as error:
        raise DecodekitError(
            f"self_consistency: an answer must be None or something hashable, such as text, a number or a "
            f"tuple, got {shown(answer)}."
        ) from error
    return answer


def _count(answers: list[Hashable | None], log_weights: list[float], order: list[int]) -> _Tally:
    """Count the votes of one prompt; `order` lists the hypotheses by likelihood."""
    terms: dict[Hashable, list[float]] = {}
    for number in order:
        answer = answers[number]
        if answer is not None:
            terms.setdefault(answer, []).append(log_weights[number])
    # Relative to the largest weight, so that probabilities of long texts do not underflow.
    largest = max(map(max, terms.values()), default=0.0)
    largest = largest if math.isfinite(largest) else 0.0
    totals = {answer: math.fsum(math.exp(log - largest) for log in logs) for answer, logs in terms.items()}
    # Sorting is stable: among equals, the answer of the likelier hypothesis stays in front.
    ranked = sorted(totals, key=lambda answer: -totals[answer])
    index = {answer: number for number, answer in enumerate(ranked)}
    total = math.fsum(totals.values()) or 1.0
    return _Tally(
        answers=ranked,
        votes=[math.fsum(map(math.exp, terms[answer])) for answer in ranked],
        shares=[totals[answer] / total for answer in ranked],
        indices=[None if answer is None else index[answer] for answer in answers],
    )
