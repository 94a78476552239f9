"""The entropy of the next token."""

import torch
from jaxtyping import Float32
from torch import Tensor


def probs_and_entropy(
    scores: Float32[Tensor, "rows tokens"],
) -> tuple[Float32[Tensor, "rows tokens"], Float32[Tensor, "rows 1"]]:
    """The probabilities of the tokens, and their entropy in nats.

    Both round as those of `torch.distributions.Categorical`, which Hugging Face takes them from.
    """
    log_probs = scores - scores.logsumexp(-1, keepdim=True)
    probs = log_probs.softmax(-1)
    # The least number stands in for minus infinity, which would make NaN with a probability of 0.
    surprisal = log_probs.clamp(min=torch.finfo(scores.dtype).min)
    return probs, -(surprisal * probs).sum(-1, keepdim=True)
