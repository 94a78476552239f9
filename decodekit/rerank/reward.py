"""Best of n by a reward."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from decodekit.core.result import Decoded
from decodekit.core.validation import plain
from decodekit.errors import DecodekitError
from decodekit.rerank._shared.ranking import rank, reorder, valid_numbers
from decodekit.rerank._shared.text_inputs import check_decoded, read_hypotheses


def best_of_n(
    out: Decoded,
    reward: Callable[[Any], Any] | Tensor,
    *,
    batched: bool = False,
    ids: bool | None = None,
) -> Decoded:
    r"""Puts the hypothesis first that a reward function values most.

    $\arg\max_i R(y_i)$. Ties go to the likelier hypothesis.

    Args:
        out: The hypotheses, usually samples.
        reward: From a hypothesis to a number, the larger the better; it is given text where there is any,
            else a list of ids. Or a tensor of rewards, `[batch, hyps]`; what stands in it for hypotheses that
            are not valid does not count.
        batched: True: `reward` is called once, with the list of all valid hypotheses, one prompt's after the
            other's, and returns as many numbers, as a list, an array or a tensor.
        ids: True: `reward` is given lists of ids; False: texts; None: texts if there are any.

    Returns:
        The hypotheses, best first; `score` is the reward.

    Raises:
        TypeError: If `out` is not what `decode` returns, or `reward` can neither be called nor is a tensor.
        ValueError: If `batched` or `ids` are given for a tensor.
        DecodekitError: If there is not a number for every hypothesis, or one is NaN, or texts are wanted and
            there are none.

    Example:
        >>> out = dk.decode(dk.load(), "The king", dk.Sample(8, seeds=[0]), max_new_tokens=8)
        >>> best = dk.best_of_n(out, lambda text: text.count("e"))
        >>> int(best.score[0, 0]) == max(text.count("e") for text in out.texts[0])
        True

    Source:
        Stiennon et al., 2020, https://arxiv.org/abs/2009.01325.

    Hugging Face:
        None.
    """
    check_decoded("best_of_n", "out", out)
    if isinstance(reward, Tensor):
        if batched or ids is not None:
            raise ValueError(
                "best_of_n: a tensor of rewards is not called, so batched and ids must not be given."
            )
        if reward.shape != out.valid.shape:
            raise DecodekitError(
                f"best_of_n: rewards must be [batch, hyps], {tuple(out.valid.shape)}, got "
                f"{tuple(reward.shape)}."
            )
        rows = valid_numbers(out, reward)
    elif callable(reward):
        hypotheses = read_hypotheses("best_of_n", out, ids=ids)
        rows = (
            _call_once(reward, hypotheses)
            if batched
            else [[reward(one) for one in row] for row in hypotheses]
        )
    else:
        raise TypeError(f"best_of_n: reward must be callable or a tensor, got {reward!r:.80}.")
    rewards = [[_number(value) for value in row] for row in rows]
    order = rank(out, [[(value,) for value in row] for row in rewards])
    return reorder(out, order, rewards, None)


def _call_once(reward: Callable[[Any], Any], hypotheses: Sequence[Sequence[Any]]) -> list[list[Any]]:
    flat = [one for row in hypotheses for one in row]
    given = plain(reward(flat)) if flat else []
    if not isinstance(given, Sequence) or len(given) != len(flat):
        raise DecodekitError(
            f"best_of_n: with batched=True there must be one reward a hypothesis, {len(flat)} together, got "
            f"{given!r:.80}."
        )
    values = iter(given)
    return [[next(values) for _ in row] for row in hypotheses]


def _number(given: object) -> float:
    try:
        value = float(given)  # type: ignore[arg-type]  # whatever it is
    except (TypeError, ValueError):
        value = math.nan
    if math.isnan(value):
        raise DecodekitError(f"best_of_n: a reward must be a number, got {given!r:.80}.")
    return value
