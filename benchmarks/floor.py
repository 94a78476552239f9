"""Lower bounds on decoding time: the bytes that must be read, divided by the bandwidth of this machine."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from measuring import timed

_BYTES = {"cpu": 2**29, "cuda": 2**32}  # many times the size of the caches


def bandwidth(device: str = "cpu", clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes per second that this process can read from memory: the best of several sums."""
    numbers = torch.ones(_BYTES[device] // 4, device=device)
    numbers.sum()
    return numbers.nbytes / min(timed(numbers.sum, device, clock) for _ in range(8))


def multiplications(device: str = "cpu", clock: Callable[[], float] = time.perf_counter) -> float:
    """Float32 multiplications per second of this process: the best of several large products."""
    one = torch.ones(2048, 2048, device=device)
    product = torch.empty_like(one)
    torch.mm(one, one, out=product)
    best = min(timed(lambda: torch.mm(one, one, out=product), device, clock) for _ in range(5))
    return 2048**3 / best


def bytes_a_step(model: Any) -> int:  # noqa: ANN401 - a transformers model
    """Bytes of the weights that every step must read: all except embedding tables, which are looked up."""
    head = model.get_output_embeddings().weight
    tables = {
        id(module.weight): int(module.weight.nbytes)
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding) and module.weight is not head
    }
    every = sum(int(weight.nbytes) for weight in model.parameters())
    return every - sum(tables.values())


def bytes_a_token(model: Any) -> int:  # noqa: ANN401
    """Bytes of the keys and values of one token."""
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(config.num_hidden_layers * 2 * heads * head * model.dtype.itemsize)


def bytes_read(model: Any, texts: Iterable[tuple[int, int]]) -> int:  # noqa: ANN401
    """Bytes of all weights, once per step, and of the keys and values of each prompt and one continuation.

    Args:
        model: A transformers model.
        texts: Number of tokens and of new tokens of each prompt; all prompts are in one batch.
    """
    every = list(texts)
    steps = max(new for _, new in every)
    # The first step reads no cache. The i-th step after it reads the prompt and i new tokens.
    columns = sum((new - 1) * length + new * (new - 1) // 2 for length, new in every)
    return steps * bytes_a_step(model) + columns * bytes_a_token(model)
