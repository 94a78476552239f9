"""Attention of several queries to grouped keys and values, without a copy of them for every query head."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

_NAME = "decodekit_grouped"


@contextmanager
def grouped_attention(config: Any) -> Iterator[None]:  # noqa: ANN401 - a configuration of transformers
    """Inside, a model of grouped queries whose attention is PyTorch's own repeats no keys or values.

    transformers repeats them for every query head where there are a mask and more than one query.
    """
    heads = getattr(config, "num_attention_heads", 1)
    groups = getattr(config, "num_key_value_heads", None) or heads
    if groups == heads or config._attn_implementation != "sdpa":  # noqa: SLF001 - where it keeps it
        yield
        return
    config._attn_implementation_internal = _registered()  # noqa: SLF001
    try:
        yield
    finally:
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
    batch, heads, queries, width = query.shape
    groups = key.shape[1]
    # [batch heads queries width] -> [batch groups share*queries width]
    together = query.reshape(batch, groups, -1, width)
    mask = attention_mask.repeat(1, 1, heads // groups, 1)
    output = nn.functional.scaled_dot_product_attention(together, key, value, attn_mask=mask, scale=scaling)
    return output.view(batch, heads, queries, -1).transpose(1, 2).contiguous(), None
