"""Noisy-channel reranking: Bayes' rule with a reverse model and a language model."""

from torch import nn

from decodekit.core.result import Decoded
from decodekit.models.protocols import Model
from decodekit.rerank._shared.model_terms import check_weight, lengths_of, log_probs_of, rank_by_terms
from decodekit.rerank._shared.text_inputs import check_decoded
from decodekit.rerank.channel import Channel, as_channel
from decodekit.rerank.prior import Prior, check_prior, sums


def noisy_channel(
    out: Decoded,
    channel: Channel | Model | nn.Module,
    *,
    channel_weight: float = 1.0,
    prior: Prior | None = None,
    prior_weight: float | None = None,
    length_reward: float = 0.0,
) -> Decoded:
    r"""Puts the hypothesis first from which the source can be told, and which is likely on its own.

    Ranks by $\log P(y \mid x) + \lambda_1 \log P(x \mid y) + \lambda_2 \log P(y) + r |y|$.

    Args:
        out: The hypotheses, usually beams.
        channel: The reverse model, $P(x \mid y)$: a `Channel`, or a model, which must say the prompts' ids.
        channel_weight: $\lambda_1$, any finite number. Usual values: 0.1-1.
        prior: The language model, $P(y)$; None: there is none.
        prior_weight: $\lambda_2$, any finite number; None: $\lambda_1$.
        length_reward: $r$, nats a token, the end id included. Usual values: 0-1.

    Returns:
        The hypotheses, best first; `score` is the sum, `report` a `ModelReport`.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If a weight is not a finite number, or `prior_weight` is given without a `prior`.
        DecodekitError: If the terms have no sum; and whatever `Channel` and `Prior` raise.

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
    check_prior("noisy_channel", prior)
    if prior is None and prior_weight is not None:
        raise ValueError(
            f"noisy_channel: prior_weight is the weight of a prior, and there is none; got {prior_weight!r}."
        )
    second_weight = channel_weight if prior_weight is None else prior_weight
    for name, value in (
        ("channel_weight", channel_weight),
        ("prior_weight", second_weight),
        ("length_reward", length_reward),
    ):
        check_weight("noisy_channel", name, value)
    reverse = as_channel(channel).log_probs(out)
    alone = None if prior is None else sums(prior.token_log_probs(out))
    terms = [(1.0, log_probs_of(out)), (channel_weight, reverse), (length_reward, lengths_of(out))]
    if alone is not None:
        terms.append((second_weight, alone))
    return rank_by_terms("noisy_channel", out, terms, channel=reverse, prior=alone)
