"""`generate()` with a static cache and `torch.compile`, for beam search too."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from transformers.generation import CompileConfig


def own_options() -> dict[str, Any]:
    """Options that make `generate` compile its steps, which it supports for greedy search and sampling."""
    config = CompileConfig()
    config._compile_all_devices = True  # noqa: SLF001 - off by default on the CPU
    return {"cache_implementation": "static", "compile_config": config}


def forget() -> None:
    """Forget compiled code, so that the next workload compiles for its own shapes only."""
    torch._dynamo.reset()  # noqa: SLF001 - as its documentation says


def compiled_step(model: Any) -> Any:  # noqa: ANN401 - of transformers
    """The model's forward, compiled for the shapes of one workload."""
    # No CUDA graph: every reorder of beams allocates new cache buffers, which would need a new graph.
    return torch.compile(model.forward, dynamic=False)


@contextmanager
def compiled_steps(model: Any, step: Any) -> Iterator[None]:  # noqa: ANN401
    """A context in which steps after the prompt are compiled, since `generate` compiles no beam search.

    Args:
        model: A transformers model.
        step: The result of `compiled_step`.
    """
    plain = model.forward

    @wraps(plain)
    def forward(*args: Any, **given: Any) -> Any:  # noqa: ANN401
        return (step if given["input_ids"].shape[1] == 1 else plain)(*args, **given)

    model.forward = forward
    try:
        yield
    finally:
        del model.forward  # uncovers the method of the class
