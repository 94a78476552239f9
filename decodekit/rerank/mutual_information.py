"""Maximum mutual information reranking, against answers that fit any question."""

from torch import nn

from decodekit.core.result import Decoded
from decodekit.core.validation import FINITE, FRACTION, at_least
from decodekit.models.protocols import Model
from decodekit.rerank._shared.hypotheses import check_decoded
from decodekit.rerank._shared.model_terms import lengths_of, log_probs_of, rank_by_terms
from decodekit.rerank.channel import Channel, as_channel
from decodekit.rerank.prior import Prior


def mmi_antilm(
    out: Decoded,
    prior: Prior | Model | nn.Module,
    *,
    weight: float = 0.5,
    first: int | None = None,
    length_reward: float = 0.0,
) -> Decoded:
    r"""Ranks hypotheses by their likelihood given the source, relative to a language model.

    The score is $\log P(y \mid x) - \lambda \sum_{t \le \gamma} \log P(y_t \mid y_{<t}) + r |y|$.

    Args:
        out: The hypotheses, usually many.
        prior: The language model, $P(y)$: a `Prior`, or a model, which starts at its BOS.
        weight: $\lambda$, any finite number. Usual values: 0.3-0.5.
        first: $\gamma$, number of tokens to penalise, at least 1; None: all. Later tokens follow from the
            first ones, and penalising them too makes texts less fluent.
        length_reward: $r$, nats per token, the end id included.

    Returns:
        The hypotheses, best first; `score` is the sum, `report` a `ModelReport`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If `weight` or `length_reward` is not a finite number, or `first` not such an integer.
        DecodekitError: If the terms have no sum, or as `Prior` raises.

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
    terms = [(1.0, log_probs_of(out)), (-weight, prior_log_probs), (length_reward, lengths_of(out))]
    return rank_by_terms("mmi_antilm", out, terms, prior=prior_log_probs)


def mmi_bidi(
    out: Decoded,
    channel: Channel | Model | nn.Module,
    *,
    weight: float = 0.5,
    length_reward: float = 0.0,
) -> Decoded:
    r"""Ranks hypotheses by their own likelihood and that of the source given them.

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
        DecodekitError: As `Channel` raises.

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
    reverse = as_channel(channel).log_probs(out)
    terms = [(1 - weight, log_probs_of(out)), (weight, reverse), (length_reward, lengths_of(out))]
    return rank_by_terms("mmi_bidi", out, terms, channel=reverse)
