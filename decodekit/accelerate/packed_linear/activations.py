"""GELU in one operation, where a model writes it out in eight."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def written_out(model: nn.Module) -> list[Any]:
    """The activations that compute GELU by its approximation with tanh, an operation for each term."""
    from transformers.activations import FastGELUActivation, NewGELUActivation  # noqa: PLC0415 - slow to import

    classes = {FastGELUActivation, NewGELUActivation}  # a subclass may do anything
    return [module for module in model.modules() if type(module) in classes and "forward" not in vars(module)]


def in_one(module: Any) -> Callable[[Tensor], Tensor]:  # noqa: ANN401 - of those classes
    """What the module computes, in one pass: for float32 on the CPU, where it differs by rounding.

    Smaller numbers round between the operations, so there it would not.
    """
    plain = type(module).forward.__get__(module)

    def forward(input: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:  # noqa: A002 - its name there
        if input.dtype == torch.float32 and input.device.type == "cpu":
            return nn.functional.gelu(input, approximate="tanh")
        usual: Tensor = plain(input)
        return usual

    return forward
