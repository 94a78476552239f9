"""Many sequences of ids as one tree, in arrays that a device can walk."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

_MOST_IDS = 2**31  # far above any vocabulary

# The ids of each string.
Strings = Iterable[Sequence[int] | Int64[Tensor, " length"]]


@final
@dataclass(frozen=True, eq=False)
class TokenTrie:
    """The prefixes of sets of strings of ids: a node is a prefix, an edge the id that makes it longer.

    Nodes are numbered level by level: first the roots, one a set, then the prefixes of one id, in the
    order of their parents and ids, and so on. So the edge that stands at place i leads to node
    `roots + i`, and a child is found by a binary search. After the last node come two without edges:
    `dead`, where no string leads, and `ended`, after an end id.

    Attributes:
        edges: `parent * stride + id` of every edge, ascending, and a last one that is none.
        first: For every node the place of its first edge; those of the next node follow.
        complete: Nodes that are a whole string, and `ended`.
        stride: Above every id.
        roots: Number of sets.
        most: Edges of a node at most, at least 1.
    """

    edges: Int64[Tensor, " edges"]
    first: Int64[Tensor, " places"]
    complete: Bool[Tensor, " nodes"]
    stride: int
    roots: int
    most: int

    @property
    def dead(self) -> int:
        """The node of what no string begins with."""
        return len(self.complete) - 2

    @property
    def ended(self) -> int:
        """The node of strings that are over."""
        return len(self.complete) - 1

    @classmethod
    def build(cls, who: str, sets: Sequence[Strings]) -> "TokenTrie":
        """The tree of sets of strings, each from its own root; sorted level by level, no loop over strings.

        Raises:
            TypeError: If a string is no sequence.
            ValueError: If there is no set, one is empty, or an id is not an integer of at least 0.
        """
        strings = [[_ids(who, string) for string in one] for one in sets]
        if not strings or not all(strings):
            raise ValueError(f"{who}: there must be at least one string in a set, got none.")
        flat = list(chain.from_iterable(strings))
        lengths = np.fromiter(map(len, flat), np.int64, len(flat))
        ids = np.fromiter(chain.from_iterable(flat), np.int64, int(lengths.sum()))
        stride = int(ids.max(initial=0)) + 1
        # The node that each string has come to, its unread strings' places, and where each begins.
        node = np.repeat(np.arange(len(strings)), [len(one) for one in strings])
        begins, unread = lengths.cumsum() - lengths, np.arange(len(flat))
        nodes, levels, whole = len(strings), [np.empty(0, np.int64)], []
        for depth in range(int(lengths.max()) + 1):
            goes_on = lengths[unread] > depth
            whole.append(node[unread[~goes_on]])
            unread = unread[goes_on]
            edges, child = np.unique(node[unread] * stride + ids[begins[unread] + depth], return_inverse=True)
            node[unread] = nodes + child
            nodes += len(edges)
            levels.append(edges)
        edges = np.concatenate(levels)
        first = np.searchsorted(edges, np.arange(nodes + 3) * stride)
        complete = np.zeros(nodes + 2, dtype=np.bool_)
        complete[np.concatenate([*whole, [nodes + 1]]).astype(np.int64)] = True
        return cls(
            edges=torch.from_numpy(np.append(edges, np.iinfo(np.int64).max)),
            first=torch.from_numpy(first.astype(np.int64)),
            complete=torch.from_numpy(complete),
            stride=stride,
            roots=len(strings),
            most=max(int(np.diff(first).max()), 1),
        )

    def holds(self, token: int) -> bool:
        """Whether some string has the id in it."""
        return bool((self.edges[:-1] % self.stride == token).any())

    def child(self, node: Int64[Tensor, " rows"], tokens: Int64[Tensor, " rows"]) -> Int64[Tensor, " rows"]:
        """The node one id further; `dead` where no string goes on with it."""
        edge = node * self.stride + tokens
        place = torch.searchsorted(self.edges, edge).clamp(max=len(self.edges) - 1)
        # An id of the stride or above would be taken for another node's edge.
        leads = (tokens < self.stride) & (self.edges.index_select(0, place) == edge)
        return torch.where(leads, self.roots + place, self.dead)

    def following(self, node: Int64[Tensor, " rows"], vocab: int) -> Bool[Tensor, "rows vocab"]:
        """The ids that some string goes on with."""
        first = self.first.index_select(0, node)[:, None]
        last = self.first.index_select(0, node + 1)[:, None]
        # [rows most]: as many places as a node has at most; a spare last id takes those that it has not.
        places = first + torch.arange(self.most, device=node.device)
        edges = self.edges.index_select(0, places.clamp(max=len(self.edges) - 1).flatten())
        ids = torch.where(places < last, edges.view_as(places) % self.stride, vocab)
        allowed = torch.zeros((len(node), vocab + 1), dtype=torch.bool, device=node.device)
        return allowed.scatter(1, ids, torch.ones_like(ids, dtype=torch.bool))[:, :vocab]


@lru_cache(maxsize=16)
def on_device(trie: TokenTrie, device: torch.device) -> TokenTrie:
    """A device's copy of the tree, made once: a copy a step would stall the device's stream."""
    return replace(
        trie,
        edges=trie.edges.to(device),
        first=trie.first.to(device),
        complete=trie.complete.to(device),
    )


def _ids(who: str, string: Sequence[int] | Int64[Tensor, " length"]) -> Sequence[int]:
    """A string's ids, plain; small enough for a node and an id to make one number."""
    ids = string.tolist() if isinstance(string, Tensor | np.ndarray) else string
    if isinstance(ids, str | bytes) or not isinstance(ids, Sequence):
        raise TypeError(f"{who}: a string must be a sequence of token ids, got {string!r:.80}.")
    for token in ids:
        if type(token) is not int or not 0 <= token < _MOST_IDS:
            raise ValueError(f"{who}: token ids must be integers of at least 0, got {token!r:.80}.")
    return ids
