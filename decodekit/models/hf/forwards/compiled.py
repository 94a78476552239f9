"""Passes compiled by `torch.compile`, and the time that compiling took."""

import time
from typing import Any, final

import torch
from torch import Tensor

from decodekit.core.validation import shown
from decodekit.errors import ModelError
from decodekit.models.hf.forwards.forward import unwrapped


@final
class Compiled:
    """A compiled copy of a model's call, compiled once per combination of shapes; the model is unchanged."""

    def __init__(self, model: Any, backend: bool | str) -> None:  # noqa: FBT001 - as HFModel takes it
        known = torch.compiler.list_backends(exclude_tags=())
        if backend is not True and backend not in known:
            raise ModelError(
                f"HFModel: compiled must be True, False or a backend of torch.compile ({', '.join(known)}), "
                f"got {shown(backend)}."
            )
        if unwrapped(model) is not model:
            raise ModelError("HFModel: the model is already compiled. Use compiled=False.")
        self._call: Any = torch.compile(model, backend="inductor" if backend is True else backend)
        self._shapes: set[object] = set()
        self.seconds = 0.0

    def __call__(self, **arguments: Any) -> Any:
        """The model's output. The first call with new shapes compiles."""
        shapes = tuple((name, _shape(value)) for name, value in arguments.items())
        if shapes in self._shapes:
            return self._call(**arguments)
        start = time.perf_counter()
        output = self._call(**arguments)
        self.seconds += time.perf_counter() - start
        self._shapes.add(shapes)
        return output

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s" if self._shapes else "not yet"


def _shape(value: object) -> object:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return tuple(map(_shape, value.values())) if isinstance(value, dict) else type(value)
