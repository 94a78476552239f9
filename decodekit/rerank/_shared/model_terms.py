"""Weighted sums of several models' log-probabilities of a hypothesis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float32
from torch import Tensor, nn

from decodekit.core.result import Decoded
from decodekit.core.validation import at_least
from decodekit.errors import DecodekitError
from decodekit.models.protocols import Model
from decodekit.rerank._shared.hypotheses import in_order, rank, reorder, valid_values

Numbers = Sequence[Sequence[float]]  # for every prompt, one per valid hypothesis


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelReport:
    r"""Log-probabilities by other models, in the `Decoded.report` of functions that rank with them.

    Attributes:
        channel: $\log P(x \mid y)$ of each hypothesis in nats, in the new order, minus infinity if it is not
            valid; None without a reverse model.
        prior: $\log P(y)$ likewise, of the tokens that count; None without a language model.

    Example:
        >>> model = dk.testing.MarkovModel([[0.6, 0.4], [0.9, 0.1]])
        >>> out = dk.decode(model, [[0]], dk.BeamSearch(2, num_return=2), max_new_tokens=1)
        >>> dk.mmi_bidi(out, model).report.channel.exp()
        tensor([[0.6000, 0.9000]])
    """

    channel: Float32[Tensor, "batch hyps"] | None = None
    prior: Float32[Tensor, "batch hyps"] | None = None


def check_second_model(who: str, model: object, batch_size: int | None) -> None:
    """Raise unless `model` is a model, and `batch_size` a number of hypotheses or None."""
    if not isinstance(model, Model | nn.Module) or isinstance(model, type):
        raise TypeError(f"{who}: model must be a Model or a transformers model, got {model!r:.80}.")
    if batch_size is not None:
        at_least(1).check(who, "batch_size", batch_size)


def rank_by_terms(
    who: str,
    out: Decoded,
    terms: Sequence[tuple[float, Numbers]],
    *,
    channel: Numbers | None = None,
    prior: Numbers | None = None,
) -> Decoded:
    """Rank the hypotheses by a weighted sum.

    Args:
        who: For messages.
        out: The hypotheses.
        terms: Weights, each with its numbers.
        channel: For the report.
        prior: Likewise.
    """
    terms = [(weight, numbers) for weight, numbers in terms if weight]  # 0 times infinity is nothing
    scores = [
        [_sum(who, [weight * numbers[row][number] for weight, numbers in terms]) for number in range(valid)]
        for row, valid in enumerate(out.valid.sum(1).tolist())
    ]
    order = rank(out, [[(score,) for score in row] for row in scores])
    report = ModelReport(
        channel=None if channel is None else in_order(out, order, channel),
        prior=None if prior is None else in_order(out, order, prior),
    )
    return reorder(out, order, scores, report)


def lengths_of(out: Decoded) -> Numbers:
    """Return the lengths of every prompt's valid hypotheses, in tokens."""
    return valid_values(out, out.lengths.tolist())


def log_probs_of(out: Decoded) -> Numbers:
    """Return the log-probabilities of every prompt's valid hypotheses, summed in double precision."""
    return valid_values(out, out.token_log_probs.double().sum(-1).tolist())


def _sum(who: str, terms: list[float]) -> float:
    total = sum(terms)
    if math.isnan(total):
        raise DecodekitError(
            f"{who}: a hypothesis must not be infinitely bad by one model and infinitely good by another, "
            f"got {terms}. Use models that find it possible."
        )
    return total
