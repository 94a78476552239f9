"""How many tokens a model can work on at once, by the memory that is left."""

from typing import Any, NamedTuple

import torch

from decodekit.accelerate.free_memory import memory_left

# The part of what is left that a batch may take: on a CPU what is too much is not refused but swapped.
SHARE = {"cuda": 0.8, "cpu": 0.4}
# Reading a prompt, a layer holds about so many numbers for each of its width: the input, its normalisation,
# queries, keys and values, and twice the four times wider inner layer.
_WORKING = 16
# So many copies of the logits of a row there are in a step: the model's, in float32, prepared, processed, ...
_LOGITS = 8


class MemoryEstimate(NamedTuple):
    """What a batch takes, in bytes.

    Attributes:
        token: A column of a row: its keys and values twice, for when buffers are copied, and its part of the
            pass that reads the prompt.
        row: A row besides: its logits.
    """

    token: int
    row: int


def memory_estimate(model: Any) -> MemoryEstimate:  # noqa: ANN401 - a model of transformers
    """What a batch takes, from the model's configuration: attention that is written out is not in it."""
    config = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * width
    reads_source = 2 if model.config.is_encoder_decoder else 1
    numbers = 2 * reads_source * keys + _WORKING * config.hidden_size
    return MemoryEstimate(numbers * model.dtype.itemsize, 4 * _LOGITS * config.vocab_size)


def tokens_that_fit(model: Any, columns: int) -> int:  # noqa: ANN401
    """How many columns of rows of about so many columns fit the memory that is left, at least 1.

    Args:
        model: A model of transformers.
        columns: Of a row.
    """
    device = model.device
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        left = free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        left = memory_left()
    needs = memory_estimate(model)
    share = SHARE.get(device.type, SHARE["cpu"])
    return max(int(share * left) // (needs.token + needs.row // max(columns, 1)), 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # What torch raises on a CPU: of Windows, and of everything else.
    says = ("not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in says)
