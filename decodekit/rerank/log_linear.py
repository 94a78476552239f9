"""Log-linear reranking with a reverse model and a language model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float32
from torch import Tensor, nn

from decodekit.core.result import Decoded
from decodekit.core.validation import FINITE, FRACTION, at_least, checked_options, shown
from decodekit.errors import DecodekitError
from decodekit.models.protocols import Model
from decodekit.rerank._shared.hypotheses import check_decoded, in_order, rank, reorder, valid_values
from decodekit.rerank.second_models import Channel, Prior

Numbers = Sequence[Sequence[float]]  # for every prompt, one number per valid hypothesis


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelReport:
    r"""Log-probabilities by other models, in the `Decoded.report` of functions that rank with them.

    Attributes:
        channel: $\log P(x \mid y)$ of each hypothesis in nats, in the new order, minus infinity if not valid;
            None without a reverse model.
        prior: $\log P(y)$ of each hypothesis, or of its tokens that count, in nats; None without a language
            model.

    Example:
        >>> model = dk.testing.MarkovModel([[0.6, 0.4], [0.9, 0.1]])
        >>> out = dk.decode(model, [[0]], dk.BeamSearch(2, num_return=2), max_new_tokens=1)
        >>> dk.mmi_bidi(out, model).report.channel.exp()
        tensor([[0.6000, 0.9000]])
    """

    channel: Float32[Tensor, "batch hyps"] | None = None
    prior: Float32[Tensor, "batch hyps"] | None = None


def _rank_by_terms(
    who: str,
    out: Decoded,
    weight: float,
    terms: Sequence[tuple[float, Numbers]],
    *,
    channel: Numbers | None = None,
    prior: Numbers | None = None,
) -> Decoded[ModelReport]:
    """Rank the hypotheses by a weighted sum of their log-probability, with its weight, and other terms."""
    log_probs = valid_values(out, out.token_log_probs.double().sum(-1).tolist())
    terms = [term for term in [(weight, log_probs), *terms] if term[0]]  # 0 times infinity is nothing
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


def _lengths_of(out: Decoded) -> Numbers:
    return valid_values(out, out.lengths.tolist())


def _sum(who: str, terms: list[float]) -> float:
    total = sum(terms)
    if math.isnan(total):
        raise DecodekitError(
            f"{who}: the terms of a hypothesis have no sum, got infinities of both signs: {terms}. "
            "Use models with a finite log-probability."
        )
    return total


@checked_options
def noisy_channel(
    out: Decoded,
    channel: Channel | Model | nn.Module,
    *,
    channel_weight: float = 1.0,
    prior: Prior | None = None,
    prior_weight: float | None = None,
    length_reward: float = 0.0,
) -> Decoded[ModelReport]:
    r"""Ranks hypotheses by the likelihoods under the model, a reverse model and a language model.

    The score is $\log P(y \mid x) + \lambda_1 \log P(x \mid y) + \lambda_2 \log P(y) + r |y|$.

    Args:
        out: The hypotheses, usually beams.
        channel: The reverse model, $P(x \mid y)$: a `Channel`, or a model, which scores the prompts' ids.
        channel_weight: $\lambda_1$, any finite number. Usual values: 0.1-1.
        prior: The language model, $P(y)$; None: no language model.
        prior_weight: $\lambda_2$, any finite number; None: $\lambda_1$.
        length_reward: $r$, nats per token, the end id included. Usual values: 0-1.

    Returns:
        The hypotheses, best first; `score` is the sum, `report` a `ModelReport`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If a weight is not a finite number, or `prior_weight` is given without a `prior`.
        DecodekitError: If the terms have no sum, and for the reasons of `Channel` and `Prior`.

    Example:
        >>> model = dk.testing.MarkovModel([[0.6, 0.4], [0.9, 0.1]])
        >>> out = dk.decode(model, [[0]], dk.BeamSearch(2, num_return=2), max_new_tokens=1)
        >>> out.hypotheses(), dk.noisy_channel(out, model, channel_weight=2.0).hypotheses()
        ([[[0], [1]]], [[[1], [0]]])

    Source:
        Yee, Dauphin & Auli, 2019, https://arxiv.org/abs/1908.05731.

    Hugging Face:
        None.
    """
    check_decoded("noisy_channel", "out", out)
    if prior is not None and not isinstance(prior, Prior):
        raise TypeError(f"noisy_channel: prior must be a Prior, got {shown(prior)}. Use dk.Prior(model).")
    if prior is None and prior_weight is not None:
        raise ValueError(
            f"noisy_channel: prior_weight needs a prior, got {prior_weight!r} without one. Pass prior=."
        )
    prior_weight = channel_weight if prior_weight is None else prior_weight
    FINITE.check("noisy_channel", "channel_weight", channel_weight)
    FINITE.check("noisy_channel", "prior_weight", prior_weight)
    FINITE.check("noisy_channel", "length_reward", length_reward)
    reverse = (channel if isinstance(channel, Channel) else Channel(channel)).log_probs(out)
    prior_log_probs = None if prior is None else prior.log_probs(out)
    terms = [(channel_weight, reverse), (length_reward, _lengths_of(out))]
    if prior_log_probs is not None:
        terms.append((prior_weight, prior_log_probs))
    return _rank_by_terms("noisy_channel", out, 1.0, terms, channel=reverse, prior=prior_log_probs)


@checked_options
def mmi_antilm(
    out: Decoded,
    prior: Prior | Model | nn.Module,
    *,
    weight: float = 0.5,
    first: int | None = None,
    length_reward: float = 0.0,
) -> Decoded[ModelReport]:
    r"""Ranks hypotheses by their likelihood given the source, relative to a language model.

    The score is $\log P(y \mid x) - \lambda \sum_{t \le \gamma} \log P(y_t \mid y_{<t}) + r |y|$.

    Args:
        out: The hypotheses, usually many.
        prior: The language model, $P(y)$: a `Prior`, or a model, which starts at its BOS.
        weight: $\lambda$, any finite number. Usual values: 0.3-0.5.
        first: $\gamma$, number of tokens to penalize, at least 1; None: all. The first tokens determine the
            later tokens; penalizing the later tokens too makes texts less fluent.
        length_reward: $r$, nats per token, the end id included.

    Returns:
        The hypotheses, best first; `score` is the sum, `report` a `ModelReport`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If `weight` or `length_reward` is not a finite number, or `first` not an integer above 0.
        DecodekitError: If the terms have no sum, and for the reasons of `Prior`.

    Example:
        >>> model, lm = dk.testing.MarkovModel([[0.6, 0.4]] * 2), dk.testing.MarkovModel([[0.9, 0.1]] * 2)
        >>> out = dk.decode(model, [[0]], dk.BeamSearch(2, num_return=2), max_new_tokens=1)
        >>> out.hypotheses(), dk.mmi_antilm(out, dk.Prior(lm, [[0]])).hypotheses()
        ([[[0], [1]]], [[[1], [0]]])

    Source:
        Li et al., 2016, https://arxiv.org/abs/1510.03055, MMI-antiLM.

    Hugging Face:
        None.
    """
    check_decoded("mmi_antilm", "out", out)
    FINITE.check("mmi_antilm", "weight", weight)
    FINITE.check("mmi_antilm", "length_reward", length_reward)
    if first is not None:
        at_least(1).check("mmi_antilm", "first", first)
    prior = prior if isinstance(prior, Prior) else Prior(prior)
    prior_log_probs = prior.log_probs(out, first)
    terms = [(-weight, prior_log_probs), (length_reward, _lengths_of(out))]
    return _rank_by_terms("mmi_antilm", out, 1.0, terms, prior=prior_log_probs)


@checked_options
def mmi_bidi(
    out: Decoded, channel: Channel | Model | nn.Module, *, weight: float = 0.5, length_reward: float = 0.0
) -> Decoded[ModelReport]:
    r"""Ranks hypotheses by their likelihood and the likelihood of the source given the hypothesis.

    The score is $(1 - \lambda) \log P(y \mid x) + \lambda \log P(x \mid y) + r |y|$.

    Args:
        out: The hypotheses, usually many.
        channel: The reverse model, $P(x \mid y)$: a `Channel`, or a model, which scores the prompts' ids.
        weight: $\lambda$, in [0, 1]. Usual value: 0.5.
        length_reward: $r$, nats per token, the end id included.

    Returns:
        The hypotheses, best first; `score` is the sum, `report` a `ModelReport`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If `weight` is outside [0, 1], or `length_reward` is not a finite number.
        DecodekitError: For the reasons of `Channel`.

    Example:
        >>> model = dk.testing.MarkovModel([[0.6, 0.4], [0.9, 0.1]])
        >>> out = dk.decode(model, [[0]], dk.BeamSearch(2, num_return=2), max_new_tokens=1)
        >>> out.hypotheses(), dk.mmi_bidi(out, model, weight=0.9).hypotheses()
        ([[[0], [1]]], [[[1], [0]]])

    Source:
        Li et al., 2016, https://arxiv.org/abs/1510.03055, MMI-bidi.

    Hugging Face:
        None.
    """
    check_decoded("mmi_bidi", "out", out)
    FRACTION.check("mmi_bidi", "weight", weight)
    FINITE.check("mmi_bidi", "length_reward", length_reward)
    reverse = (channel if isinstance(channel, Channel) else Channel(channel)).log_probs(out)
    terms = [(weight, reverse), (length_reward, _lengths_of(out))]
    return _rank_by_terms("mmi_bidi", out, 1 - weight, terms, channel=reverse)
