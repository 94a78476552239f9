"""Memories and states as pytrees: reordering rows, selecting prompts, and the parts that own them."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

Memory = Any  # any nest of tuples, lists and dicts; the first axis of each tensor is `rows`, or it is 0-d


@runtime_checkable
class PromptSelectable(Protocol):
    """A node of a memory or state that implements the selection of prompts itself."""

    def for_prompts(self, prompts: Int64[Tensor, " kept"], batch: int) -> "PromptSelectable":
        """The node for some prompts.

        Args:
            prompts: The prompts to keep, ascending.
            batch: Number of prompts before the selection.
        """


@runtime_checkable
class Splittable(Protocol):
    """A decoder, processor or criterion, or a part of one, that declares if its prompts are independent."""

    batch_independent: bool


def reorder_memory(memory: Memory, source_rows: Int64[Tensor, " new_rows"]) -> Memory:
    """The memory after a reordering of rows: every tensor with a rows axis is reordered."""

    def follow(leaf: object) -> object:
        return leaf.index_select(0, source_rows) if isinstance(leaf, Tensor) and leaf.ndim else leaf

    return tree_map(follow, memory)


def keep_prompts(tree: Memory, prompts: Int64[Tensor, " kept"], batch: int) -> Memory:
    """The memory, or the state of a decoder, for some prompts only.

    Args:
        tree: Its tensors are 0-d, or their first axis has equally many entries per prompt, prompt-major.
        prompts: The prompts to keep, ascending.
        batch: Number of prompts before the selection.
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
    """The chosen rows of several memories of `batch * beams` rows each.

    Args:
        memories: Memories of the same structure.
        chosen: For every new row, the row of its prompt that it continues, counted through all memories.
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

    return tree_map(pick, *memories)


def whole_part(*parts: object) -> object | None:
    """The first part of a run, nested ones included, that needs all prompts at once; None without one."""
    splittable = (part for part in parts_of(*parts) if isinstance(part, Splittable))
    return next((part for part in splittable if not part.batch_independent), None)


def parts_of(*parts: object) -> list[object]:
    """The parts of a run and all nested parts, each before its own parts."""
    found: list[object] = []
    for part in parts:
        if isinstance(part, Splittable):
            found += [part, *parts_of(*_values(part))]
        elif isinstance(part, Sequence) and not isinstance(part, str):
            found += parts_of(*part) if part and isinstance(part[0], Splittable) else []
        elif hasattr(part, "capturable") or isinstance(part, torch.Generator):
            found.append(part)
    return found


def can_be_split(memory: Memory) -> bool:
    """True if the memory of some prompts can be separated from the memory of the rest."""
    leaves = tree_flatten(memory, is_leaf=lambda node: isinstance(node, PromptSelectable))[0]
    return all(leaf.batch_independent for leaf in leaves if isinstance(leaf, Splittable))


def _values(part: object) -> list[object]:
    return list(vars(part).values()) if hasattr(part, "__dict__") else []
