"""A trie of token sequences, in arrays that a device can search."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from decodekit.core.validation import shown

_MAX_IDS = 2**31  # far above any vocabulary

# The ids of each string.
Strings = Iterable[Sequence[int] | Int64[Tensor, " length"]]


@final
@dataclass(frozen=True, eq=False)
class TokenTrie:
    """The prefixes of sets of strings of ids: a node is a prefix, an edge the id that extends it.

    Nodes are numbered level by level: first the roots, one per set, then the prefixes of one id, in the order
    of their parents and ids, and so on. So edge i leads to node `roots + i`, and a binary search finds a
    child. Two nodes without edges come last: `dead`, for any other sequence, and `ended`, after an end id.

    Attributes:
        edges: `parent * stride + id` of every edge, ascending, then a sentinel.
        first: The index of every node's first edge; the edges of a node are adjacent.
        complete: True for nodes that are a whole string, and for `ended`.
        stride: A number above every id.
        roots: Number of sets.
        max_children: Largest number of children of a node, at least 1.
    """

    edges: Int64[Tensor, " edges"]
    first: Int64[Tensor, " places"]
    complete: Bool[Tensor, " nodes"]
    stride: int
    roots: int
    max_children: int

    @property
    def dead(self) -> int:
        """The node of sequences that are not a prefix of any string."""
        return len(self.complete) - 2

    @property
    def ended(self) -> int:
        """The node of rows after an end id."""
        return len(self.complete) - 1

    @classmethod
    def build(cls, who: str, sets: Sequence[Strings]) -> "TokenTrie":
        """Build the trie of sets of strings, each from its own root, level by level.

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
        # The current node of every string, strings with unread ids, and the index of each one's first id.
        node = np.repeat(np.arange(len(strings)), [len(one) for one in strings])
        begins, unread = lengths.cumsum() - lengths, np.arange(len(flat))
        nodes, levels, whole = len(strings), [np.empty(0, np.int64)], []
        for depth in range(int(lengths.max()) + 1):
            continues = lengths[unread] > depth
            whole.append(node[unread[~continues]])
            unread = unread[continues]
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
            max_children=max(int(np.diff(first).max()), 1),
        )

    def contains(self, token: int) -> bool:
        """Return True if some string contains the id."""
        return bool((self.edges[:-1] % self.stride == token).any())

    def child(self, node: Int64[Tensor, " rows"], tokens: Int64[Tensor, " rows"]) -> Int64[Tensor, " rows"]:
        """Return the node one id further; `dead` where no string continues with it."""
        edge = node * self.stride + tokens
        place = torch.searchsorted(self.edges, edge).clamp(max=len(self.edges) - 1)
        # An id of at least the stride would match another node's edge.
        is_edge = (tokens < self.stride) & (self.edges.index_select(0, place) == edge)
        return torch.where(is_edge, self.roots + place, self.dead)

    def next_ids(self, node: Int64[Tensor, " rows"], vocab: int) -> Bool[Tensor, "rows vocab"]:
        """Mark the next ids of all strings that continue the prefix."""
        first = self.first.index_select(0, node)[:, None]
        last = self.first.index_select(0, node + 1)[:, None]
        # [rows max_children]: a spare last id fills the places of missing children.
        places = first + torch.arange(self.max_children, device=node.device)
        edges = self.edges.index_select(0, places.clamp(max=len(self.edges) - 1).flatten())
        ids = torch.where(places < last, edges.view_as(places) % self.stride, vocab)
        allowed = torch.zeros((len(node), vocab + 1), dtype=torch.bool, device=node.device)
        return allowed.scatter(1, ids, torch.ones_like(ids, dtype=torch.bool))[:, :vocab]


@lru_cache(maxsize=16)
def on_device(trie: TokenTrie, device: torch.device) -> TokenTrie:
    """Return a cached copy on a device: a copy at every step would stall the device's stream."""
    edges, first, complete = (tensor.to(device) for tensor in (trie.edges, trie.first, trie.complete))
    return replace(trie, edges=edges, first=first, complete=complete)


def _ids(who: str, string: Sequence[int] | Int64[Tensor, " length"]) -> Sequence[int]:
    """Return the ids of a string as integers, small enough for a node and an id to make one number."""
    ids = string.tolist() if isinstance(string, Tensor | np.ndarray) else string
    if isinstance(ids, str | bytes) or not isinstance(ids, Sequence):
        raise TypeError(f"{who}: a string must be a sequence of token ids, got {shown(string)}.")
    for token in ids:
        if type(token) is not int or not 0 <= token < _MAX_IDS:
            raise ValueError(f"{who}: token ids must be integers of at least 0, got {shown(token)}.")
    return ids
