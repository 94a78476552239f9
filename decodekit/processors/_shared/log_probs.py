"""Sums of weighted log-probabilities in which probability 0 makes neither NaN nor plus infinity.

Minus infinity is an ordinary log-probability, and 0 times it, or its difference from itself, is not a
number. So a factor $p^w$ with $p = 0$ is taken for what it says: 0 for $w > 0$, 1 for $w = 0$, and for
$w < 0$, where it would be infinite, what it is for a probability that float32 can just not hold.
"""

import math

import torch
from jaxtyping import Float32
from torch import Tensor

# Nats; the logarithm of the smallest number above 0 that float32 has.
_LEAST = -149 * math.log(2)

Weight = float | Float32[Tensor, "rows 1"]


def lifted(log_probs: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, "rows vocab"]:
    """The log-probabilities with a finite number for that of 0: at most all others of the row."""
    impossible = log_probs == -torch.inf
    least = log_probs.masked_fill(impossible, 0.0).amin(-1, keepdim=True).clamp(max=_LEAST)
    return torch.where(impossible, least, log_probs)


def weighted(weight: Weight, log_probs: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, "rows vocab"]:
    """The logarithm of $p^w$: never NaN, never plus infinity."""
    banned = (log_probs == -torch.inf) & (weight > 0)
    return (weight * lifted(log_probs)).masked_fill(banned, -torch.inf)


def keep_banned(
    new: Float32[Tensor, "rows vocab"], scores: Float32[Tensor, "rows vocab"]
) -> Float32[Tensor, "rows vocab"]:
    """The new scores, with minus infinity wherever the old ones have it."""
    return new.masked_fill(scores == -torch.inf, -torch.inf)


def normalized(scores: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, "rows vocab"]:
    """The scores as log-probabilities; a row without a token that is allowed stays as it is."""
    # Minus infinity less anything finite is itself: only where all of a row is, it is not a number.
    nothing = scores.amax(-1, keepdim=True) == -torch.inf
    return scores.log_softmax(-1).masked_fill_(nothing, -torch.inf)
