"""Memory estimates of batches."""

from typing import Any, NamedTuple

import torch

from decodekit.accelerate.free_memory import memory_left

# The share of the free memory that a batch may take. Out of memory, a CPU swaps, but a GPU raises.
SHARE = {"cuda": 0.8, "cpu": 0.4}
# Numbers that a layer holds per unit of its width while reading a prompt: the input, its normalization,
# queries, keys and values, and twice the four times wider inner layer.
_WORKING = 16
# Copies of a row's logits in a step: as computed, in float32, prepared, processed and so on.
_LOGITS = 8


class MemoryEstimate(NamedTuple):
    """Memory of a batch, in bytes."""

    # Per column of a row: keys and values twice, because buffers are copied, and a share of the first pass.
    token: int
    row: int  # per row in addition: its logits


def memory_estimate(model: Any) -> MemoryEstimate:
    """The estimate for a transformers model, by its configuration. Eager attention needs more memory."""
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * width
    reads_source = 2 if model.config.is_encoder_decoder else 1
    numbers = 2 * reads_source * keys + _WORKING * config.hidden_size
    return MemoryEstimate(numbers * model.dtype.itemsize, 4 * _LOGITS * config.vocab_size)


def tokens_that_fit(model: Any, columns: int) -> int:
    """Total number of tokens that fit the free memory in rows of about `columns` tokens, at least 1."""
    device = model.device
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        left = free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        left = memory_left()
    estimate = memory_estimate(model)
    share = SHARE.get(device.type, SHARE["cpu"])
    return max(int(share * left) // (estimate.token + estimate.row // max(columns, 1)), 1)
