"""Noisy-channel reranking, by Bayes' rule with a reverse model and a language model."""

from torch import nn

from decodekit.core.result import Decoded
from decodekit.core.validation import FINITE
from decodekit.models.protocols import Model
from decodekit.rerank._shared.hypotheses import check_decoded
from decodekit.rerank._shared.model_terms import lengths_of, log_probs_of, rank_by_terms
from decodekit.rerank.channel import Channel, as_channel
from decodekit.rerank.prior import Prior


def noisy_channel(
    out: Decoded,
    channel: Channel | Model | nn.Module,
    *,
    channel_weight: float = 1.0,
    prior: Prior | None = None,
    prior_weight: float | None = None,
    length_reward: float = 0.0,
) -> Decoded:
    r"""Ranks hypotheses by their likelihood, that of the source given them, and that without a source.

    The score is $\log P(y \mid x) + \lambda_1 \log P(x \mid y) + \lambda_2 \log P(y) + r |y|$.

    Args:
        out: The hypotheses, usually beams.
        channel: The reverse model, $P(x \mid y)$: a `Channel`, or a model, which scores the prompts' ids.
        channel_weight: $\lambda_1$, any finite number. Usual values: 0.1-1.
        prior: The language model, $P(y)$; None: no such term.
        prior_weight: $\lambda_2$, any finite number; None: $\lambda_1$.
        length_reward: $r$, nats per token, the end id included. Usual values: 0-1.

    Returns:
        The hypotheses, best first; `score` is the sum, `report` a `ModelReport`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If a weight is not a finite number, or `prior_weight` is given without a `prior`.
        DecodekitError: If the terms have no sum, or as `Channel` and `Prior` raise.

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
        raise TypeError(f"noisy_channel: prior must be a Prior, got {prior!r:.80}. Use dk.Prior(model).")
    if prior is None and prior_weight is not None:
        raise ValueError(
            f"noisy_channel: prior_weight is the weight of a prior, and there is none; got {prior_weight!r}."
        )
    prior_weight = channel_weight if prior_weight is None else prior_weight
    FINITE.check("noisy_channel", "channel_weight", channel_weight)
    FINITE.check("noisy_channel", "prior_weight", prior_weight)
    FINITE.check("noisy_channel", "length_reward", length_reward)
    reverse = as_channel(channel).log_probs(out)
    prior_log_probs = None if prior is None else prior.log_probs(out)
    terms = [(1.0, log_probs_of(out)), (channel_weight, reverse), (length_reward, lengths_of(out))]
    if prior_log_probs is not None:
        terms.append((prior_weight, prior_log_probs))
    return rank_by_terms("noisy_channel", out, terms, channel=reverse, prior=prior_log_probs)
