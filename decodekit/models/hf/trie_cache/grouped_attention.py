"""Attention of the beams of a prompt, without a copy of keys and values for query heads."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from decodekit.accelerate.kernels.trie_attention import (
    MAX_BEAMS,
    Key,
    Query,
    Value,
    is_available,
    masked_attention,
    pack,
    should_use_kernel,
    trie_attention,
)
from decodekit.models.hf.trie_cache.tree_mask import Bias, Mask

_NAME = "decodekit_grouped"
# The results of `should_use_kernel`, by device, dtype and shapes.
_use_kernel: dict[tuple[object, ...], bool] = {}
# The addresses of the masks of a pass; the packed mask of each, once it was needed.
_packed: ContextVar[dict[int, Int64[Tensor, "batch slots"] | None]] = ContextVar("_packed")


@contextmanager
def grouped_attention(config: Any, mask: Mask) -> Iterator[None]:
    """Inside, the model uses an attention for tries in place of PyTorch's.

    transformers repeats the keys and values of grouped queries for every query head if there are a mask and
    several queries; this attention does not. On a GPU with Triton it calls the kernel, if a trial on tensors
    of the same shapes found it correct and faster. The mask must be additive, without any other bias.
    """
    heads = getattr(config, "num_attention_heads", 1)
    groups = getattr(config, "num_key_value_heads", None) or heads
    masks = list(mask.values()) if isinstance(mask, dict) else [mask]
    is_useful = groups != heads or _has_kernel(masks[0].device)
    if not is_useful or config._attn_implementation != "sdpa":  # noqa: SLF001 - transformers' only name
        yield
        return
    config._attn_implementation_internal = _registered()  # noqa: SLF001
    before = _packed.set({one.data_ptr(): None for one in masks})
    try:
        yield
    finally:
        _packed.reset(before)
        config._attn_implementation_internal = "sdpa"  # noqa: SLF001


def _has_kernel(device: torch.device) -> bool:
    return device.type == "cuda" and is_available(device)


@cache
def _registered() -> str:
    from transformers import AttentionInterface, AttentionMaskInterface  # noqa: PLC0415 - slow to import
    from transformers.masking_utils import sdpa_mask  # noqa: PLC0415

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    return _NAME


def _attend(
    module: nn.Module,
    query: Query,
    key: Key,
    value: Value,
    attention_mask: Bias | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "batch beams heads value_width"], None]:
    """Attention in which the heads of a group are queries of one head."""
    if attention_mask is None or any(options.get(name) is not None for name in ("position_bias", "softcap")):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: PLC0415

        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return output, None
    words = _words(query, key, value, attention_mask)
    if words is None:
        output = masked_attention(query, key, value, attention_mask, scaling)
    else:
        output = trie_attention(query, key, value, words, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


def _words(query: Query, key: Key, value: Value, mask: Bias) -> Int64[Tensor, "batch slots"] | None:
    """The mask in the kernel's form; None if the kernel should not be used."""
    packed, address = _packed.get({}), mask.data_ptr()
    is_tree_mask = address in packed and mask.shape[-1] == key.shape[2]  # other masks may hold a bias
    if not is_tree_mask or query.shape[2] > MAX_BEAMS or not _has_kernel(query.device):
        return None
    kind = (query.device, query.dtype, query.shape, key.shape, value.shape)
    if kind not in _use_kernel:
        if query.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None  # a trial would wait for the device
        _use_kernel[kind] = should_use_kernel(query, key, value, mask[:, 0] == 0)
    if not _use_kernel[kind]:
        return None
    words = packed[address]
    if words is None:
        words = packed[address] = pack(mask[:, 0] == 0)
    return words
