"""What processors and stopping criteria remember, and how it follows its rows."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

Memory = Any  # any nest of tuples, lists and dicts; its tensors lead with `rows`, or are 0-d


@runtime_checkable
class PromptSelectable(Protocol):
    """A part of a memory or a state that knows itself how to go on with some prompts only."""

    def for_prompts(self, prompts: Int64[Tensor, " kept"], batch: int) -> "PromptSelectable":
        """The same for some prompts.

        Args:
            prompts: Which of those it is for now, ascending.
            batch: How many those are.
        """


def reorder_memory(memory: Memory, source_rows: Int64[Tensor, " new_rows"]) -> Memory:
    """The memory in which every tensor with a rows axis has followed its row."""

    def follow(leaf: object) -> object:
        return leaf.index_select(0, source_rows) if isinstance(leaf, Tensor) and leaf.ndim else leaf

    return tree_map(follow, memory)


def keep_prompts(tree: Memory, prompts: Int64[Tensor, " kept"], batch: int) -> Memory:
    """The memory, or a decoder's state, of some prompts only.

    Args:
        tree: Every tensor leads with as many entries for each prompt, prompt-major, or is 0-d.
        prompts: Which of its prompts, ascending.
        batch: How many it has.
    """

    def part(leaf: object) -> object:
        if isinstance(leaf, PromptSelectable):
            return leaf.for_prompts(prompts, batch)
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            return leaf
        # [batch*rows ...] -> [batch rows ...] -> [kept*rows ...]
        by_prompt = leaf.reshape(batch, len(leaf) // batch, *leaf.shape[1:])
        return by_prompt.index_select(0, prompts).flatten(0, 1)

    return tree_map(part, tree, is_leaf=lambda node: isinstance(node, PromptSelectable))


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
