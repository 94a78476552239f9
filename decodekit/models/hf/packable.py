"""Packable modules of a transformers model."""

from torch import nn

from decodekit.accelerate.packed_linear import LinearLayer, Packable


def find_packable(model: nn.Module) -> Packable:
    """The linear layers of a model, and its tanh-GELUs that are written as one operation per term."""
    from transformers.activations import FastGELUActivation, NewGELUActivation  # noqa: PLC0415 - slow to import
    from transformers.pytorch_utils import Conv1D  # noqa: PLC0415

    modules = list(model.modules())
    linear, gelu = {nn.Linear, Conv1D}, {FastGELUActivation, NewGELUActivation}
    return Packable(  # no subclasses, which may compute something else
        [LinearLayer(module, type(module) is Conv1D) for module in modules if type(module) in linear],
        [module for module in modules if type(module) in gelu and "forward" not in vars(module)],
    )
