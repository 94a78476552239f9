"""Maximum mutual information: against answers that fit any question."""

from torch import nn

from decodekit.core.result import Decoded
from decodekit.core.validation import is_count, is_finite
from decodekit.models.protocols import Model
from decodekit.rerank._shared.model_terms import check_weight, lengths_of, log_probs_of, rank_by_terms
from decodekit.rerank._shared.text_inputs import check_decoded
from decodekit.rerank.channel import Channel, as_channel
from decodekit.rerank.prior import Prior, sums


def mmi_antilm(
    out: Decoded,
    prior: Prior | Model | nn.Module,
    *,
    weight: float = 0.5,
    first: int | None = None,
    length_reward: float = 0.0,
) -> Decoded:
    r"""Puts the hypothesis first that the source makes likelier than it is anyway.

    Ranks by $\log P(y \mid x) - \lambda \sum_{t \le \gamma} \log P(y_t \mid y_{<t}) + r |y|$.

    Args:
        out: The hypotheses, usually many.
        prior: The language model, $P(y)$: a `Prior`, or a model, which begins with its BOS.
        weight: $\lambda$, any finite number. Usual values: 0.3-0.5.
        first: $\gamma$, tokens that are penalised, at least 1; None: all. Later ones follow from the first,
            and penalising them too makes texts that are not fluent.
        length_reward: $r$, nats a token, the end id included.

    Returns:
        The hypotheses, best first; `score` is the sum, `report` a `ModelReport`.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If `weight` or `length_reward` is not a finite number, or `first` not such an integer.
        DecodekitError: If the terms have no sum; and whatever `Prior` raises.

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
    check_weight("mmi_antilm", "weight", weight)
    check_weight("mmi_antilm", "length_reward", length_reward)
    if first is not None and not is_count(first, 1):
        raise ValueError(f"mmi_antilm: first must be an integer of at least 1 or None, got {first!r}.")
    anyway = sums((prior if isinstance(prior, Prior) else Prior(prior)).token_log_probs(out), first)
    terms = [(1.0, log_probs_of(out)), (-weight, anyway), (length_reward, lengths_of(out))]
    return rank_by_terms("mmi_antilm", out, terms, prior=anyway)


def mmi_bidi(
    out: Decoded,
    channel: Channel | Model | nn.Module,
    *,
    weight: float = 0.5,
    length_reward: float = 0.0,
) -> Decoded:
    r"""Puts the hypothesis first from which the source can be told.

    Ranks by $(1 - \lambda) \log P(y \mid x) + \lambda \log P(x \mid y) + r |y|$.

    Args:
        out: The hypotheses, usually many.
        channel: The reverse model, $P(x \mid y)$: a `Channel`, or a model, which must say the prompts' ids.
        weight: $\lambda$, in [0, 1]. Usual value: 0.5.
        length_reward: $r$, nats a token, the end id included.

    Returns:
        The hypotheses, best first; `score` is the sum, `report` a `ModelReport`.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If `weight` is outside [0, 1], or `length_reward` is not a finite number.
        DecodekitError: Whatever `Channel` raises.

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
    if not is_finite(weight) or not 0 <= weight <= 1:
        raise ValueError(f"mmi_bidi: weight must be in [0, 1], got {weight!r}.")
    check_weight("mmi_bidi", "length_reward", length_reward)
    reverse = as_channel(channel).log_probs(out)
    terms = [(1 - weight, log_probs_of(out)), (weight, reverse), (length_reward, lengths_of(out))]
    return rank_by_terms("mmi_bidi", out, terms, channel=reverse)
