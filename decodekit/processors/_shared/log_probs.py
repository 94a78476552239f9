"""Sums of weighted log-probabilities, and the entropy, without NaN for a probability of 0.

Minus infinity is an ordinary log-probability, but 0 times it, or its difference from itself, is NaN. So a
factor $p^w$ with $p = 0$ is 0 for $w > 0$ and 1 for $w = 0$. For $w < 0$, where it would be infinite, $p$ is
replaced by a probability just below the smallest one that float32 holds.
"""

import math

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.processors.base import Scores

# Nats; the logarithm of the smallest number above 0 that float32 has.
_LEAST = -149 * math.log(2)

Weight = float | Float32[Tensor, "rows 1"]


def lift_impossible(log_probs: Scores) -> Scores:
    """Replace minus infinity by a finite number that is at most every other one of its row."""
    impossible = log_probs == -torch.inf
    least = log_probs.masked_fill(impossible, 0.0).amin(-1, keepdim=True).clamp(max=_LEAST)
    return torch.where(impossible, least, log_probs)


def weigh(weight: Weight, log_probs: Scores) -> Scores:
    """Return the logarithm of $p^w$: never NaN, never plus infinity."""
    banned = (log_probs == -torch.inf) & (weight > 0)
    return (weight * lift_impossible(log_probs)).masked_fill(banned, -torch.inf)


def keep_banned(new: Scores, scores: Scores) -> Scores:
    """Return the new scores, with minus infinity wherever the old ones have it."""
    return new.masked_fill(scores == -torch.inf, -torch.inf)


def normalize(scores: Scores) -> Scores:
    """Return the scores as log-probabilities; a row with every token banned stays as it is."""
    # Only in such a row is the log-softmax NaN.
    all_banned = scores.amax(-1, keepdim=True) == -torch.inf
    return scores.log_softmax(-1).masked_fill_(all_banned, -torch.inf)


def probs_and_entropy(
    scores: Float32[Tensor, "rows tokens"],
) -> tuple[Float32[Tensor, "rows tokens"], Float32[Tensor, "rows 1"]]:
    """Return the probabilities and their entropy in nats, rounded as by `torch.distributions.Categorical`."""
    log_probs = scores - scores.logsumexp(-1, keepdim=True)
    probs = log_probs.softmax(-1)
    # The least finite number replaces minus infinity, which times a probability of 0 is NaN.
    surprisal = log_probs.clamp(min=torch.finfo(scores.dtype).min)
    return probs, -(surprisal * probs).sum(-1, keepdim=True)
