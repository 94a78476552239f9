"""Nodes of an exact search's tree, and the memories stored with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from decodekit.core.limits import Limits
from decodekit.core.pytrees import Memory
from decodekit.core.vocabulary import Vocabulary

STORABLE = Tensor | int | float | str | None | Limits | Vocabulary


class MemorySnapshot(NamedTuple):
    """The memory of some hypotheses, flattened, so that its rows can be split and joined."""

    leaves: tuple[object, ...]  # tensors whose first axis is the hypotheses, 0-d tensors, and constants
    structure: TreeSpec
    device: torch.device

    @classmethod
    def store(cls, memory: Memory, device: torch.device) -> "MemorySnapshot | None":
        """A snapshot of a memory; None if it cannot be stored.

        Tensors and constants are values and can be stored. Any other leaf may be a session of a second model.
        A session cannot go back to an earlier hypothesis: the second model must read that hypothesis again.
        """
        leaves, structure = tree_flatten(memory)
        if not all(isinstance(leaf, STORABLE) for leaf in leaves):
            return None
        return cls(tuple(leaves), structure, device)

    @staticmethod
    def restore(snapshots: Sequence["MemorySnapshot"]) -> Memory:
        """The joint memory of hypotheses of one length."""
        leaves = [
            torch.cat(several) if _has_rows(several[0]) else several[0]
            for several in zip(*(snapshot.leaves for snapshot in snapshots), strict=True)
        ]
        return tree_unflatten(leaves, snapshots[0].structure)

    def take(self, rows: Int64[Tensor, " some"]) -> "MemorySnapshot":
        """The snapshot of some of the hypotheses."""
        if not any(map(_has_rows, self.leaves)):
            return self
        rows = rows.to(self.device)
        taken = (leaf.index_select(0, rows) if _has_rows(leaf) else leaf for leaf in self.leaves)
        return self._replace(leaves=tuple(taken))


def _has_rows(leaf: object) -> TypeGuard[Tensor]:
    return isinstance(leaf, Tensor) and leaf.ndim > 0


@dataclass(eq=False)
class Node:
    """A hypothesis, as its last token and the node of the tokens before it."""

    prompt: int
    parent: "Node | None" = None  # the hypothesis without its last token; None for the prompt itself
    token: int = -1
    length: int = 0  # number of new tokens
    total: float = 0.0  # sum of the log-probabilities after the processors, in nats
    processed_log_prob: float = 0.0  # the last token's term of that sum
    log_prob: float = 0.0  # the model's own log-probability of the last token
    score: float = -torch.inf  # score if the hypothesis ends here
    bound: float = torch.inf  # upper bound on the score of the hypothesis and of all its continuations
    finish_code: int = 0  # 0: not finished
    # Memories, None if not stored. The memory of the processors precedes the logits after this node.
    processor_memory: MemorySnapshot | None = None
    scorer_memory: MemorySnapshot | None = None
    stopping_memory: MemorySnapshot | None = None
    # The model's outputs after this node, if processors or the scorer must read them again.
    model_scores: Float32[Tensor, " vocab"] | None = None
    attention: Float32[Tensor, " context"] | None = None

    def path(self) -> list["Node"]:
        """The nodes from the prompt to this one."""
        nodes = [self]
        while nodes[-1].parent is not None:
            nodes.append(nodes[-1].parent)
        return nodes[::-1]

    def tokens(self) -> list[int]:
        """The new tokens."""
        return [node.token for node in self.path()[1:]]


@dataclass(eq=False)
class Children:
    """The children of a node that wait in the queue, in their order. All arrays are on the host."""

    parent: Node
    tokens: Int64[np.ndarray, " children"]  # the last token of each child
    # Rows `total`, `processed_log_prob`, `log_prob`, `score`, `bound` and `finish_code` of `Node`.
    values: Float32[np.ndarray, "values children"]
    max_bounds: Float32[np.ndarray, " children"]  # the largest bound of each child and all later ones
    # Memory of the processors after they saw the parent's logits.
    processor_memory: MemorySnapshot | None = None
    scorer_memory: MemorySnapshot | None = None  # memory of the scorer, a row per child; None if not stored
    position: int = 0  # the number of children already taken

    @property
    def length(self) -> int:
        """New tokens of each child."""
        return self.parent.length + 1

    @property
    def exhausted(self) -> bool:
        """True if no child is left to take."""
        return self.position >= len(self.tokens)

    @property
    def bound(self) -> float:
        """Upper bound on the score of all children that are left, and of their continuations."""
        return float(self.max_bounds[self.position])

    @property
    def total(self) -> float:
        """The `total` of the next child."""
        return float(self.values[0, self.position])

    def truncate(self, number: int) -> None:
        """Keep the first `number` children."""
        # Copies: a view would keep the whole array alive.
        self.tokens, self.max_bounds = self.tokens[:number].copy(), self.max_bounds[:number].copy()
        self.values = self.values[:, :number].copy()
        if self.scorer_memory is not None:
            self.scorer_memory = self.scorer_memory.take(torch.arange(number))

    def pop(self) -> Node:
        """Take the next child."""
        position = self.position
        self.position += 1
        total, processed_log_prob, log_prob, score, bound, finish_code = self.values[:, position].tolist()
        memory = self.scorer_memory
        return Node(
            prompt=self.parent.prompt,
            parent=self.parent,
            token=int(self.tokens[position]),
            length=self.length,
            total=total,
            processed_log_prob=processed_log_prob,
            log_prob=log_prob,
            score=score,
            bound=bound,
            finish_code=int(finish_code),
            processor_memory=self.processor_memory,
            scorer_memory=None if memory is None else memory.take(torch.tensor([position])),
        )


def group_by_length(nodes: Sequence[Node]) -> list[list[int]]:
    """The indices of nodes of equal length, shortest first."""
    lengths = sorted({node.length for node in nodes})
    return [[row for row, node in enumerate(nodes) if node.length == length] for length in lengths]
