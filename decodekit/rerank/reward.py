"""Best-of-n sampling by a reward."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from decodekit.core.result import Decoded
from decodekit.core.validation import checked_options, plain, shown
from decodekit.errors import DecodekitError
from decodekit.rerank._shared.hypotheses import check_decoded, rank, read_hypotheses, reorder, valid_values


@checked_options
def best_of_n(
    out: Decoded, reward: Callable[[Any], Any] | Tensor, *, batched: bool = False, ids: bool | None = None
) -> Decoded[None]:
    r"""Ranks hypotheses by a reward.

    The first is $\arg\max_i R(y_i)$. Ties go to the likelier hypothesis.

    Args:
        out: The hypotheses, usually samples.
        reward: Function from a hypothesis, as text if there is any, else as a list of ids, to a number;
            larger is better. Or a tensor of rewards, `[batch, hyps]`; entries of invalid hypotheses are
            ignored.
        batched: True: `reward` is called once with the list of all valid hypotheses, prompt by prompt, and
            returns one number for each, as a list, an array or a tensor.
        ids: True: `reward` takes lists of ids; False: texts; None: texts if there are any.

    Returns:
        The hypotheses, best first; `score` is the reward.

    Raises:
        TypeError: If `out` is not what `decode` returns, or `reward` is neither callable nor a tensor.
        ValueError: If `batched` or `ids` are given for a tensor.
        DecodekitError: If there is not one number per hypothesis, or one is NaN, or texts are required and
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
                "best_of_n: batched and ids have no effect on a tensor of rewards. Leave them out."
            )
        if reward.shape != out.valid.shape:
            raise DecodekitError(
                f"best_of_n: rewards must be [batch, hyps], {tuple(out.valid.shape)}, got "
                f"{tuple(reward.shape)}."
            )
        rows = valid_values(out, reward.tolist())
    elif callable(reward):
        hypotheses = read_hypotheses("best_of_n", out, ids=ids)
        if batched:
            rows = _call_once(reward, hypotheses)
        else:
            rows = [[reward(hypothesis) for hypothesis in row] for row in hypotheses]
    else:
        raise TypeError(f"best_of_n: reward must be callable or a tensor, got {shown(reward)}.")
    rewards = [[_number(value) for value in row] for row in rows]
    order = rank(out, [[(value,) for value in row] for row in rewards])
    return reorder(out, order, rewards, None)


def _call_once(reward: Callable[[Any], Any], hypotheses: Sequence[Sequence[Any]]) -> list[list[Any]]:
    flat = [hypothesis for row in hypotheses for hypothesis in row]
    rewards = plain(reward(flat)) if flat else []
    if not isinstance(rewards, Sequence) or len(rewards) != len(flat):
        raise DecodekitError(
            f"best_of_n: with batched=True there must be one reward per hypothesis, {len(flat)} together, "
            f"got {shown(rewards)}."
        )
    values = iter(rewards)
    return [[next(values) for _ in row] for row in hypotheses]


def _number(given: object) -> float:
    try:
        value = float(given)  # type: ignore[arg-type]  # not checked yet
    except (TypeError, ValueError):
        value = math.nan
    if math.isnan(value):
        raise DecodekitError(f"best_of_n: a reward must be a number, got {shown(given)}.")
    return value
