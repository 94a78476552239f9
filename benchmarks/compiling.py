"""`generate()` with a static cache and `torch.compile`, under beam search too."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from transformers.generation import CompileConfig


def own_options() -> dict[str, Any]:
    """What makes `generate` compile its steps by itself, which it does for greedy search and samples."""
    config = CompileConfig()
    config._compile_all_devices = True  # noqa: SLF001 - on the CPU it is off otherwise
    return {"cache_implementation": "static", "compile_config": config}


def forget() -> None:
    """Makes the next work compile for its own shapes, and not for those of several works."""
    torch._dynamo.reset()  # noqa: SLF001 - as its documentation says


def compiled_step(model: Any) -> Any:  # noqa: ANN401 - of transformers
    """The model's forward, compiled for the shapes of one work."""
    # Not as a CUDA graph: every reorder of beams gives the cache other buffers, and so another graph.
    return torch.compile(model.forward, dynamic=False)


@contextmanager
def compiled_steps(model: Any, step: Any) -> Iterator[None]:  # noqa: ANN401
    """Inside, the steps after the prompt are the compiled ones: beam search of `generate` compiles nothing.

    Args:
        model: Of transformers.
        step: From `compiled_step`.
    """
    plain = model.forward

    @wraps(plain)
    def forward(*args: Any, **given: Any) -> Any:  # noqa: ANN401
        return (step if given["input_ids"].shape[1] == 1 else plain)(*args, **given)

    model.forward = forward
    try:
        yield
    finally:
        del model.forward  # the class has its own
