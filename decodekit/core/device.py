"""Faster variants of operations for tensors in the memory of the host."""

from contextvars import ContextVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# 4 MB of float32: a larger block leaves the cache, and the system allocates each of its pages again.
BLOCK = 2**20

is_recorded: ContextVar[bool] = ContextVar("is_recorded", default=False)
"""True while operations are recorded, to be replayed with other numbers."""


def is_on_host(tensor: Tensor) -> bool:
    """True if the numbers of a tensor can be read at once: on the CPU, not recorded, without gradients."""
    # A subclass may hold no numbers, as torch's fake tensors do.
    is_plain = type(tensor) is Tensor and tensor.device.type == "cpu" and not is_recorded.get()
    return is_plain and not tensor.requires_grad and not torch.compiler.is_compiling()


def chosen_log_probs(
    scores: Float[Tensor, "rows vocab"], tokens: Int64[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """The log-probability of one token per row: `scores.log_softmax(-1).gather(1, tokens[:, None])[:, 0]`.

    On the CPU in blocks of rows that fit the cache.

    Example:
        >>> chosen_log_probs(torch.zeros(1, 2), torch.tensor([1]))
        tensor([-0.6931])
    """
    rows, vocab = scores.shape
    # At least one row per thread.
    step = max(torch.get_num_threads(), BLOCK // vocab) if is_on_host(scores) else rows
    blocks = [slice(first, first + step) for first in range(0, rows, step)]
    return torch.cat([scores[some].log_softmax(-1).gather(1, tokens[some, None])[:, 0] for some in blocks])
