"""What processors and stopping criteria remember, and how it follows its rows."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

Memory = Any  # any nest of tuples, lists and dicts; its tensors lead with `rows`, or are 0-d


def reorder_memory(memory: Memory, source_rows: Int64[Tensor, " new_rows"]) -> Memory:
    """The memory in which every tensor with a rows axis has followed its row."""

    def follow(leaf: object) -> object:
        return leaf.index_select(0, source_rows) if isinstance(leaf, Tensor) and leaf.ndim else leaf

    return tree_map(follow, memory)


def pick_memory(memories: Sequence[Memory], chosen: Int64[Tensor, "batch beams"]) -> Memory:
    """Of several memories of `batch * beams` rows each, the rows that were chosen.

    Args:
        memories: Of the same structure.
        chosen: For every new row which of its prompt's rows it goes on from, counted through all
            memories.
    """
    batch, beams = chosen.shape
    prompts = torch.arange(batch, device=chosen.device)[:, None]

    def pick(*leaves: object) -> object:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not tensors or not tensors[0].ndim:
            return leaves[0]
        # [rows ...] of each -> [batch candidates ...]
        together = torch.cat([tensor.view(batch, beams, *tensor.shape[1:]) for tensor in tensors], 1)
        return together[prompts, chosen].flatten(0, 1)

    flat = [tree_flatten(memory) for memory in memories]
    leaves = [pick(*several) for several in zip(*(leaves for leaves, _ in flat), strict=True)]
    return tree_unflatten(leaves, flat[0][1])
