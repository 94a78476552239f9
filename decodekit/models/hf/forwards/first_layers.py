"""Early-exit models: the first layers and the head of a model, with shared weights."""

import copy
from typing import Any

from torch import nn

from decodekit.errors import ModelError


def first_layers(model: Any, layers: int) -> Any:
    """The model without its later layers: the last normalization and the head read an early layer's output.

    Only the configuration and the modules on the path to the list of layers are copies; layers and weights
    are the model's own, and the model is left unchanged. Raises a `ModelError` if it cannot be cut.
    """
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ModelError(
            f"HFModel: only decoder-only models can draft with early layers, but {name} is an "
            "encoder-decoder. Use DraftModel or PromptLookup."
        )
    total = model.config.get_text_config(decoder=True).num_hidden_layers
    if layers >= total:
        raise ModelError(f"HFModel: layers must be below the {total} layers of {name}, got {layers}.")
    lists = ((path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList))
    found = [path for path, modules in lists if len(modules) == total]
    if len(found) != 1:
        raise ModelError(
            f"HFModel: {name} cannot be cut: it has {len(found)} lists of its {total} layers, not 1. "
            "Use DraftModel or PromptLookup."
        )
    config = copy.deepcopy(model.config)
    text_config = config.get_text_config(decoder=True)
    text_config.num_hidden_layers = layers
    if getattr(text_config, "layer_types", None):
        text_config.layer_types = text_config.layer_types[:layers]
    return _cut(model, found[0].split("."), layers, config)


def _cut(module: Any, path: list[str], layers: int, config: Any) -> Any:
    """A copy of the module with a shorter list of layers at the end of the path."""
    if not path:
        return nn.ModuleList(list(module)[:layers])
    if "forward" in vars(module):  # set on the instance: the copy would run the original
        raise ModelError(
            f"HFModel: {type(module).__name__} cannot be cut, because its forward "
            "was replaced (by a device map, say). Use DraftModel or PromptLookup."
        )
    copied = copy.copy(module)
    copied._modules = dict(module._modules)  # noqa: SLF001 - where torch keeps them
    copied._modules[path[0]] = _cut(module._modules[path[0]], path[1:], layers, config)  # noqa: SLF001
    if hasattr(module, "config"):
        copied.config = config
    return copied
