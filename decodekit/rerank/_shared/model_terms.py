"""Sums of what several models say of a hypothesis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.core.result import Decoded
from decodekit.core.validation import is_finite
from decodekit.errors import DecodekitError
from decodekit.rerank._shared.ranking import rank, reorder, valid_numbers

Numbers = Sequence[Sequence[float]]  # for every prompt, one a valid hypothesis


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelReport:
    r"""What other models said: left in `Decoded.report` by what ranks with their help.

    Attributes:
        channel: $\log P(x \mid y)$ of each hypothesis in nats, in the new order, minus infinity if it is not
            valid; None if no reverse model was asked.
        prior: $\log P(y)$ likewise, of as many tokens as were asked for; None if no language model was asked.

    Example:
        >>> model = dk.testing.MarkovModel([[0.6, 0.4], [0.9, 0.1]])
        >>> out = dk.decode(model, [[0]], dk.BeamSearch(2, num_return=2), max_new_tokens=1)
        >>> dk.mmi_bidi(out, model).report.channel.exp()
        tensor([[0.6000, 0.9000]])
    """

    channel: Float32[Tensor, "batch hyps"] | None = None
    prior: Float32[Tensor, "batch hyps"] | None = None


def check_weight(who: str, name: str, value: object) -> None:
    """Raises unless an argument is a finite number."""
    if not is_finite(value):
        raise ValueError(f"{who}: {name} must be a finite number, got {value!r}.")


def rank_by_terms(
    who: str,
    out: Decoded,
    weighed: Sequence[tuple[float, Numbers]],
    *,
    channel: Numbers | None = None,
    prior: Numbers | None = None,
) -> Decoded:
    """The hypotheses by a weighted sum.

    Args:
        who: For messages.
        out: The hypotheses.
        weighed: Every term's weight, and its numbers.
        channel: For the report.
        prior: Likewise.
    """
    terms = [(weight, numbers) for weight, numbers in weighed if weight]  # 0 times infinity is nothing
    scores = [
        [
            _sum(who, [weight * numbers[row][number] for weight, numbers in terms])
            for number in range(int(valid))
        ]
        for row, valid in enumerate(out.valid.sum(1).tolist())
    ]
    order = rank(out, [[(value,) for value in row] for row in scores])
    told = [None if numbers is None else _in_order(out, order, numbers) for numbers in (channel, prior)]
    return reorder(out, order, scores, ModelReport(channel=told[0], prior=told[1]))


def lengths_of(out: Decoded) -> Numbers:
    """The lengths of every prompt's valid hypotheses, in tokens."""
    return valid_numbers(out, out.lengths)


def log_probs_of(out: Decoded) -> Numbers:
    """The log-probabilities of every prompt's valid hypotheses, in double precision."""
    return valid_numbers(out, out.token_log_probs.double().sum(-1))


def _sum(who: str, terms: list[float]) -> float:
    total = sum(terms)
    if math.isnan(total):
        raise DecodekitError(
            f"{who}: a hypothesis must not be infinitely bad by one model and infinitely good by another, "
            f"got {terms}. Use models that find it possible."
        )
    return total


def _in_order(
    out: Decoded, order: Sequence[Sequence[int]], numbers: Numbers
) -> Float32[Tensor, "batch hyps"]:
    told = torch.full(out.valid.shape, -torch.inf)
    for row, places in enumerate(order):
        told[row, : len(places)] = torch.tensor([numbers[row][number] for number in places])
    return told.to(out.score.device)
