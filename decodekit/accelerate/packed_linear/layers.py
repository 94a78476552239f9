"""Which linear layers of a model can be packed."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Key = tuple[int, tuple[int, ...], tuple[int, ...]]


class LinearLayer(NamedTuple):
    """A linear layer that can be packed.

    Attributes:
        module: The layer.
        transposed: Whether its weight is written as `[in out]`, as `Conv1D` has it.
    """

    module: Any
    transposed: bool

    @property
    def weight(self) -> Tensor:
        """As oneDNN takes it, `[out in]`."""
        weight: Tensor = self.module.weight.detach()
        return weight.t() if self.transposed else weight

    @property
    def key(self) -> Key:
        """Equal for two layers exactly where they share a weight."""
        weight = self.weight
        return weight.data_ptr(), tuple(weight.shape), weight.stride()


def packable(model: nn.Module) -> list[LinearLayer]:
    """Every linear layer that is what its class says, with a weight that oneDNN can pack."""
    from transformers.pytorch_utils import Conv1D  # noqa: PLC0415 - slow to import, needed only here

    layers = [
        LinearLayer(module, transposed=type(module) is Conv1D)
        for module in model.modules()
        if type(module) in {nn.Linear, Conv1D}  # a subclass may do anything
    ]
    return [layer for layer in layers if _is_plain(layer.module)]


def _is_plain(module: Any) -> bool:  # noqa: ANN401 - nn.Linear or Conv1D
    """Whether calling it multiplies with its weight, adds its bias, and does nothing else.

    A forward of its own (a device map's), a compiled one, or a hook that runs before (and may make the
    weight) says that it does not. What runs after it is no obstacle.
    """
    replaced = "forward" in vars(module) or module._compiled_call_impl is not None  # noqa: SLF001
    if replaced or module._forward_pre_hooks:  # noqa: SLF001 - where torch keeps them
        return False
    tensors = [module.weight] if module.bias is None else [module.weight, module.bias]
    return module.weight.ndim == 2 and all(  # noqa: PLR2004 - a matrix
        type(tensor) is nn.Parameter  # a quantised weight is of another class
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and tensor.numel() > 0
        for tensor in tensors
    )
