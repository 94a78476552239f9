"""What both versions of mirostat share: a bound on the surprise that learns from what was said."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import is_positive
from decodekit.processors._shared.parameters import PerPrompt, each, for_rows, per_prompt


class MirostatMemory(NamedTuple):
    """The bound of every row, and what the next token of it would teach.

    Attributes:
        mu: The bound on the surprise, in bits.
        surprise: Of every token at the step before, in bits; no columns before the first step.
    """

    mu: Float32[Tensor, "rows 1"]
    surprise: Float32[Tensor, "rows seen"]


def read_rates(who: str, tau: PerPrompt, eta: PerPrompt) -> tuple[PerPrompt, PerPrompt]:
    """Both parameters as they are kept. Raises unless they are finite and above 0."""
    first, second = (
        per_prompt(
            who,
            name,
            given,
            is_positive,
            "a finite number above 0",
        )
        for name, given in (("tau", tau), ("eta", eta))
    )
    return first, second


def start(tau: PerPrompt, history: History) -> MirostatMemory:
    """The memory before the first step: twice the target, and nothing to learn from."""
    none = torch.zeros(len(history.tokens), 1, device=history.tokens.device)
    return MirostatMemory(none + for_rows(each(lambda value: 2 * value, tau), history, none), none[:, :0])


def learn(
    memory: MirostatMemory, history: History, tau: PerPrompt, eta: PerPrompt
) -> Float32[Tensor, "rows 1"]:
    """The bound after the newest token: lower if it surprised more than `tau` bits, else higher.

    What had been banned before mirostat saw it (padding after the end, a forced token) teaches nothing.
    """
    if memory.surprise.shape[1] == 0:
        return memory.mu
    surprise = memory.surprise.gather(1, history.last()[:, None])
    error = surprise - for_rows(tau, history, surprise)
    return memory.mu - for_rows(eta, history, surprise) * torch.where(error.isfinite(), error, 0.0)


def surprises(scores: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, "rows vocab"]:
    """The surprise of every token, in bits."""
    return scores.log_softmax(-1) / -math.log(2)
