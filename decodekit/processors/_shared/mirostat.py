"""The surprise bound of both versions of mirostat, and its update after every token."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.processors._shared.parameters import PerPrompt, for_rows, map_per_prompt


class MirostatMemory(NamedTuple):
    """The bound of every row, and the surprise of every token at the step before, both in bits."""

    mu: Float32[Tensor, "rows 1"]
    surprise: Float32[Tensor, "rows seen"]  # no columns before the first step


def start(tau: PerPrompt, history: History) -> MirostatMemory:
    """Return the memory before the first step: a bound of twice the target."""
    none = torch.zeros(len(history.tokens), 1, device=history.tokens.device)
    mu = none + for_rows(map_per_prompt(lambda value: 2 * value, tau), history, none)
    return MirostatMemory(mu, none[:, :0])


def learn(
    memory: MirostatMemory, history: History, tau: PerPrompt, eta: PerPrompt
) -> Float32[Tensor, "rows 1"]:
    """Return the bound after the newest token: lower if it surprised more than `tau` bits, else higher.

    A token that was banned before mirostat (padding after the end, a forced token) changes nothing.
    """
    if memory.surprise.shape[1] == 0:
        return memory.mu
    surprise = memory.surprise.gather(1, history.last()[:, None])
    error = surprise - for_rows(tau, history, surprise)
    return memory.mu - for_rows(eta, history, surprise) * torch.where(error.isfinite(), error, 0.0)


def surprises(scores: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, "rows vocab"]:
    """Return the surprise of every token, in bits."""
    return scores.log_softmax(-1) / -math.log(2)
