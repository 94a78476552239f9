"""Attention of a prompt's beams: no copy of keys and values for query heads, and a kernel where it pays."""

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
    is_available,
    pack,
    should_use_kernel,
    trie_attention,
)
from decodekit.models.hf.trie_cache.layer_masks import Mask

_NAME = "decodekit_grouped"
# What was measured, for tensors of some kind and shape on a device.
_use_kernel: dict[tuple[object, ...], bool] = {}
# Of a pass: where its masks lie in memory, and what beams see by them once it was asked.
_seen: ContextVar[dict[int, Int64[Tensor, "batch slots"] | None]] = ContextVar("_seen")


@contextmanager
def grouped_attention(config: Any, mask: Mask) -> Iterator[None]:  # noqa: ANN401 - a configuration of transformers
    """Inside, a model whose attention is PyTorch's own attends in a way that suits a trie.

    Of grouped queries no keys or values are repeated: transformers repeats them for every query head where
    there are a mask and more than one query. On a GPU with Triton the kernel attends, where it was found to
    be right and faster on tensors like those at hand.

    Args:
        config: Of the model.
        mask: Of the pass, for all layers or each kind: additive, and nothing is in it but what beams see.
    """
    heads = getattr(config, "num_attention_heads", 1)
    groups = getattr(config, "num_key_value_heads", None) or heads
    masks = list(mask.values()) if isinstance(mask, dict) else [mask]
    of_use = groups != heads or is_available(masks[0].device)
    if not of_use or config._attn_implementation != "sdpa":  # noqa: SLF001 - where it keeps it
        yield
        return
    config._attn_implementation_internal = _registered()  # noqa: SLF001
    before = _seen.set({one.data_ptr(): None for one in masks})
    try:
        yield
    finally:
        _seen.reset(before)
        config._attn_implementation_internal = "sdpa"  # noqa: SLF001


@cache
def _registered() -> str:
    from transformers import AttentionInterface, AttentionMaskInterface  # noqa: PLC0415 - slow to import
    from transformers.masking_utils import sdpa_mask  # noqa: PLC0415

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    return _NAME


def _attend(
    module: nn.Module,
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch groups slots width"],
    value: Float[Tensor, "batch groups slots width"],
    attention_mask: Float[Tensor, "batch 1 queries slots"] | None,
    scaling: float | None = None,
    **given: Any,  # noqa: ANN401 - what else a model passes
) -> tuple[Float[Tensor, "batch queries heads width"], None]:
    """The heads of a group are queries of one head."""
    if attention_mask is None or given.get("position_bias") is not None or given.get("softcap") is not None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward  # noqa: PLC0415

        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **given
        )
        return output, None
    words = _words(query, key, value, attention_mask)
    if words is not None:
        attended = trie_attention(query, key, value, words, scale=scaling)
        return attended.transpose(1, 2).contiguous(), None
    batch, heads, queries, width = query.shape
    groups = key.shape[1]
    # [batch heads queries width] -> [batch groups share*queries width]
    together = query.reshape(batch, groups, -1, width)
    mask = attention_mask.repeat(1, 1, heads // groups, 1)
    output = nn.functional.scaled_dot_product_attention(together, key, value, attn_mask=mask, scale=scaling)
    return output.view(batch, heads, queries, -1).transpose(1, 2).contiguous(), None


def _words(
    query: Float[Tensor, "batch heads queries width"],
    key: Float[Tensor, "batch groups slots width"],
    value: Float[Tensor, "batch groups slots width"],
    mask: Float[Tensor, "batch 1 queries slots"],
) -> Int64[Tensor, "batch slots"] | None:
    """What beams see, as the kernel takes it; None: the kernel is not to be used."""
    seen, place = _seen.get({}), mask.data_ptr()
    is_own = place in seen and mask.shape[-1] == key.shape[2]  # others may hold more than what is seen
    if not is_own or query.shape[2] > MAX_BEAMS or not is_available(query.device):
        return None
    kind = (query.device, query.dtype, query.shape, key.shape, value.shape)
    if kind not in _use_kernel:
        if query.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None  # a measurement would wait for the device
        _use_kernel[kind] = should_use_kernel(query, key, value, mask[:, 0] == 0)
    if not _use_kernel[kind]:
        return None
    words = seen[place]
    if words is None:
        words = seen[place] = pack(mask[:, 0] == 0)
    return words
