"""Self-consistency: the answer that most hypotheses come to."""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from decodekit.core.result import Decoded
from decodekit.errors import DecodekitError
from decodekit.rerank._shared.ranking import rank, rank_alone, reorder, valid_numbers
from decodekit.rerank._shared.text_inputs import check_decoded, read_hypotheses


@dataclass(frozen=True, eq=False, kw_only=True)
class Votes:
    """How the hypotheses have voted: what `self_consistency` leaves in `Decoded.report`.

    Attributes:
        answers: The different answers of every prompt, the one with most votes first.
        votes: What each answer got: hypotheses, or the sum of what they weigh.
        answer_of: The answer of every valid hypothesis, in the new order; None where there was none.

    Example:
        >>> model = dk.testing.MarkovModel([[0.2, 0.8], [0.5, 0.5]])
        >>> out = dk.decode(model, [[0]], dk.BeamSearch(4, num_return=4), max_new_tokens=2)
        >>> dk.self_consistency(out, sum).report
        Votes(answers=[[1, 2, 0]], votes=[[2.0, 1.0, 1.0]])
    """

    answers: list[list[Hashable]]
    votes: list[list[float]]
    answer_of: list[list[Hashable | None]]

    def __repr__(self) -> str:
        return f"Votes(answers={self.answers}, votes={self.votes})"


class _Poll(NamedTuple):
    """One prompt's votes.

    Attributes:
        answers: Best first.
        votes: What each got.
        places: Which of the answers each hypothesis has, or None.
        shares: Of all votes, for each answer.
    """

    answers: list[Hashable]
    votes: list[float]
    places: list[int | None]
    shares: list[float]


def self_consistency(
    out: Decoded,
    extract: Callable[[Any], Hashable | None],
    *,
    weights: Literal["uniform", "probability", "per_token"] = "uniform",
    ids: bool | None = None,
) -> Decoded:
    r"""Puts the hypothesis first that is likeliest among those with the most common answer.

    Ranks answers by $\sum_i w_i [a_i = a]$ over the hypotheses, each of which votes, whether or not another
    says the same. Ties go to the answer of the likelier hypothesis. Hypotheses without an answer stand last.

    Args:
        out: The hypotheses, usually samples.
        extract: From a hypothesis to its answer, anything that can be a key of a dictionary, or None if it
            has none. It is given text where there is any, else a list of ids.
        weights: `"uniform"`: every hypothesis is a vote. `"probability"`: it weighs $P(y_i \mid x)$.
            `"per_token"`: it weighs $P(y_i \mid x)^{1/|y_i|}$.
        ids: True: `extract` is given lists of ids; False: texts; None: texts if there are any.

    Returns:
        The hypotheses, by their answers' votes, then the likelier first; `score` is the answer's share of all
        votes, 0 without an answer; `report` the `Votes`.

    Raises:
        TypeError: If `out` is not what `decode` returns or `extract` cannot be called.
        ValueError: If `weights` is none of the three.
        DecodekitError: If an answer cannot be a key, or texts are wanted and there are none.

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
        raise TypeError(f"self_consistency: extract must be callable, got {extract!r:.80}.")
    if weights not in {"uniform", "probability", "per_token"}:
        raise ValueError(
            f"self_consistency: weights must be 'uniform', 'probability' or 'per_token', got {weights!r}."
        )
    hypotheses = read_hypotheses("self_consistency", out, ids=ids)
    answers = [[_hashable(extract(hypothesis)) for hypothesis in row] for row in hypotheses]
    log_probs, lengths = valid_numbers(out, out.log_prob), valid_numbers(out, out.lengths)
    polls = []
    for row, own, logs, sizes in zip(answers, rank_alone(out), log_probs, lengths, strict=True):
        logged = {
            "uniform": [0.0] * len(logs),
            "probability": logs,
            "per_token": [log_prob / max(size, 1) for log_prob, size in zip(logs, sizes, strict=True)],
        }[weights]
        polls.append(_count(row, logged, own))
    worth = [[(-math.inf if place is None else -place,) for place in poll.places] for poll in polls]
    order = rank(out, worth)
    scores = [[0.0 if place is None else poll.shares[place] for place in poll.places] for poll in polls]
    return reorder(
        out,
        order,
        scores,
        Votes(
            answers=[poll.answers for poll in polls],
            votes=[poll.votes for poll in polls],
            answer_of=[[row[number] for number in own] for row, own in zip(answers, order, strict=True)],
        ),
    )


def _hashable(answer: Any) -> Hashable | None:  # noqa: ANN401
    try:
        hash(answer)
    except TypeError as error:
        raise DecodekitError(
            f"self_consistency: an answer must be None or something hashable, such as text, a number or a "
            f"tuple, got {answer!r:.80}."
        ) from error
    kept: Hashable | None = answer
    return kept


def _count(answers: list[Hashable | None], logged: list[float], order: list[int]) -> _Poll:
    """The answers by their votes.

    Args:
        answers: Of every hypothesis.
        logged: The logarithm of what its vote weighs.
        order: The hypotheses, likeliest first.
    """
    terms: dict[Hashable, list[float]] = {}
    for number in order:
        answer = answers[number]
        if answer is not None:
            terms.setdefault(answer, []).append(logged[number])
    # Relative to the heaviest vote, so that long texts, whose probabilities underflow, are told apart too.
    most = max((max(own) for own in terms.values()), default=0.0)
    most = most if math.isfinite(most) else 0.0
    weighed = {answer: math.fsum(math.exp(log - most) for log in own) for answer, own in terms.items()}
    # Sorting is stable: of equals, the answer of the likelier hypothesis stays in front.
    ranked = sorted(weighed, key=lambda answer: -weighed[answer])
    place = {answer: number for number, answer in enumerate(ranked)}
    total = math.fsum(weighed.values()) or 1.0
    return _Poll(
        answers=ranked,
        votes=[math.fsum(map(math.exp, terms[answer])) for answer in ranked],
        places=[None if answer is None else place[answer] for answer in answers],
        shares=[weighed[answer] / total for answer in ranked],
    )
