"""A model's pass over branches by `torch.compile`, and how long compiling took."""

import time
from typing import Any, final

import torch
from torch import Tensor

from decodekit.errors import ModelError
from decodekit.models.hf.forward_signature import inner


@final
class Compiled:
    """Calls a model that is compiled, once for every combination of shapes.

    The model itself is left as it was.

    Args:
        model: A transformers model.
        backend: True is torch's own; else the name of one that torch knows.

    Raises:
        ModelError: If there is no such backend, or the model is compiled already.
    """

    def __init__(self, model: Any, backend: bool | str) -> None:  # noqa: ANN401, FBT001 - as HFModel takes it
        known = torch.compiler.list_backends(exclude_tags=())
        if backend is not True and backend not in known:
            raise ModelError(
                f"HFModel: compiled must be True, False or a backend of torch.compile ({', '.join(known)}), "
                f"got {backend!r:.80}."
            )
        if inner(model) is not model:
            raise ModelError(
                "HFModel: with compiled=True the model must not be compiled yet, and it is. "
                "Use compiled=False."
            )
        self._call: Any = torch.compile(model, backend="inductor" if backend is True else backend)
        self._shapes: set[object] = set()
        self.seconds = 0.0

    def __call__(self, **given: Any) -> Any:  # noqa: ANN401 - the model's arguments, and its output
        """The model's output. The first call with new shapes compiles."""
        shapes = tuple((name, _shape(value)) for name, value in given.items())
        if shapes in self._shapes:
            return self._call(**given)
        start = time.perf_counter()
        output = self._call(**given)
        self.seconds += time.perf_counter() - start
        self._shapes.add(shapes)
        return output

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s" if self._shapes else "not yet"


def _shape(value: object) -> object:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return tuple(map(_shape, value.values())) if isinstance(value, dict) else type(value)
