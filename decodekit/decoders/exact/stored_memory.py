"""Memories that are put away, text by text, and taken up again in any company."""

from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from decodekit.core.limits import Limits
from decodekit.core.pytrees import Memory
from decodekit.core.vocabulary import Vocabulary

VALUES = Tensor | int | float | str | None | Limits | Vocabulary


class StoredMemory(NamedTuple):
    """What is remembered about some texts, taken apart.

    Attributes:
        leaves: Its tensors, which lead with the texts or are 0-d, and other values.
        shape: How they make a memory.
        device: Where the tensors are.
    """

    leaves: tuple[object, ...]
    shape: TreeSpec
    device: torch.device

    def take(self, texts: Int64[Tensor, " some"]) -> "StoredMemory":
        """What is remembered about some of them."""
        if not any(map(_has_rows, self.leaves)):
            return self
        rows = texts.to(self.device)
        taken = (leaf.index_select(0, rows) if _has_rows(leaf) else leaf for leaf in self.leaves)
        return self._replace(leaves=tuple(taken))


def keep(memory: Memory, device: torch.device) -> StoredMemory | None:
    """A memory to be put away; None where it cannot be.

    Tensors are values, and can be, as can what never changes in a run. Anything else may be the run of a
    second model, which only reads on: who remembers that has to read the text again.

    Args:
        memory: Of some texts.
        device: Where its tensors are.
    """
    leaves, shape = tree_flatten(memory)
    if not all(isinstance(leaf, VALUES) for leaf in leaves):
        return None
    return StoredMemory(tuple(leaves), shape, device)


def together(kept: Sequence[StoredMemory]) -> Memory:
    """The memory of all these, which are of texts of one length."""
    first = kept[0]
    leaves = [
        torch.cat(several) if _has_rows(several[0]) else several[0]
        for several in zip(*(one.leaves for one in kept), strict=True)
    ]
    return tree_unflatten(leaves, first.shape)


def _has_rows(leaf: object) -> TypeGuard[Tensor]:
    return isinstance(leaf, Tensor) and leaf.ndim > 0
