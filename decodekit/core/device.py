"""What is done in another way where the numbers lie in the computer's own memory."""

from contextvars import ContextVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# 4 MB of float32: more would leave the cache, and the system is asked anew for every page of it.
BLOCK = 2**20

is_recorded: ContextVar[bool] = ContextVar("is_recorded", default=False)
"""Whether operations are written down, to be done again with other numbers."""


def is_on_host(tensor: Tensor) -> bool:
    """Whether the tensor's numbers can be read at once: on the CPU, and nothing records what is done.

    False on a device that would have to be waited for, where a step is traced, and where gradients are
    taken.
    """
    # A subclass may stand for numbers that are not there, as torch's fake tensors do.
    is_plain = type(tensor) is Tensor and tensor.device.type == "cpu" and not is_recorded.get()
    return is_plain and not tensor.requires_grad and not torch.compiler.is_compiling()


def chosen_log_probs(
    scores: Float[Tensor, "rows vocab"], tokens: Int64[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """The log-probability of one token a row: `scores.log_softmax(-1).gather(1, tokens[:, None])[:, 0]`.

    On the CPU some rows at a time, so that what is not asked for never leaves the cache.

    Example:
        >>> chosen_log_probs(torch.zeros(1, 2), torch.tensor([1]))
        tensor([-0.6931])
    """
    rows, vocab = scores.shape
    # At least a row for every thread.
    step = max(torch.get_num_threads(), BLOCK // vocab) if is_on_host(scores) else rows
    blocks = [slice(first, first + step) for first in range(0, rows, step)]
    return torch.cat([scores[some].log_softmax(-1).gather(1, tokens[some, None])[:, 0] for some in blocks])
