"""What a model's forward pass takes."""

import inspect
from typing import Any


def forward_signature(model: Any) -> frozenset[str]:  # noqa: ANN401 - a transformers model, or one that was compiled
    """The names of its arguments."""
    return frozenset(inspect.signature(inner(model).forward).parameters)


def inner(model: Any) -> Any:  # noqa: ANN401
    """The model itself, also where `torch.compile` has wrapped it and hides its arguments."""
    return getattr(model, "_orig_mod", model)
