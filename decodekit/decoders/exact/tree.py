"""The search tree of a prompt: its queue, its finished hypotheses, and its bound."""

import heapq
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch

from decodekit.decoders.beam.state import nan_score
from decodekit.decoders.exact.expansion import ExpandedNode
from decodekit.decoders.exact.node import Children, Node


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """The order and the limits of a search."""

    # The children with the smallest value are taken from the queue first.
    priority: Callable[[Children], tuple[float, ...]]
    num_return: int = 1
    max_nodes: int | None = None  # maximum number of expanded nodes
    beams: int | None = None  # maximum number of expanded nodes of each length
    at_once: int = 1


class SearchTree:
    """The state of the search for one prompt."""

    def __init__(self, plan: SearchPlan, finish_code: Callable[[Node], int]) -> None:
        self.num_expanded = 1  # the prompt
        self.finished: list[Node] = []  # the best, best first
        self._plan, self._finish_code = plan, finish_code
        self._queue: list[tuple[tuple[float, ...], int, Children]] = []
        self._insertions = count()  # breaks ties: the older entry comes first
        self._exceeds_zero = False  # some token had a log-probability above 0: no bound holds
        self._pruned_bound = -torch.inf  # the largest bound of a pruned node
        self._runner_up = -torch.inf  # the best score of a finished hypothesis that is not in `finished`
        self._is_cut = False  # children were dropped, out of reach of `max_nodes`
        self._num_taken: Counter[int] = Counter()  # nodes taken from the queue, by length
        self._num_unfinished: Counter[int] = Counter()  # unfinished nodes among the taken, by length

    @property
    def worst(self) -> float:
        """The score of the last returned hypothesis; minus infinity if there are too few."""
        return self.finished[-1].score if self._is_full else -torch.inf

    @property
    def bound(self) -> float:
        """Upper bound on the score of all hypotheses that are not returned."""
        bound = max([self._pruned_bound, *(children.bound for *_, children in self._queue)])
        if self._exceeds_zero and bound > -torch.inf:
            bound = torch.inf
        return max(bound, self._runner_up)

    @property
    def all_banned(self) -> bool:
        """True if the tree is fully explored and no hypothesis can end."""
        return not (self.finished or self._queue or self._is_cut)

    def add(self, expansion: ExpandedNode) -> None:
        """Add the children of a node."""
        self._exceeds_zero = self._exceeds_zero or expansion.exceeds_zero
        finished = expansion.finished
        while not finished.exhausted and not (self._is_full and finished.bound <= self.worst):
            node = finished.pop()
            node.finish_code = self._finish_code(node)
            self._add_finished(node)
        if not finished.exhausted:
            self._runner_up = max(self._runner_up, finished.bound)
        self._push(self._pruned(expansion.open))

    def next_nodes(self) -> list[Node]:
        """The nodes to expand next; none when the search is over."""
        number = min(self._plan.at_once, self._budget)
        nodes: list[Node] = []
        while len(nodes) < number and (node := self._pop()) is not None:
            nodes.append(node)
        self.num_expanded += len(nodes)
        return nodes

    @property
    def _is_full(self) -> bool:
        return len(self.finished) == self._plan.num_return

    @property
    def _budget(self) -> float:
        """The number of nodes that may still be expanded."""
        return torch.inf if self._plan.max_nodes is None else self._plan.max_nodes - self.num_expanded

    @property
    def _prune_threshold(self) -> float:
        """The largest bound of children that can be pruned."""
        return -torch.inf if self._exceeds_zero else self.worst

    def _pop(self) -> Node | None:
        """Take the next unfinished node from the queue."""
        while self._queue:
            *_, children = heapq.heappop(self._queue)
            if self._can_prune(children):
                self._pruned_bound = max(self._pruned_bound, children.bound)
                continue
            node = children.pop()
            self._push(children)
            node.finish_code = self._finish_code(node)
            rank = self._num_taken[node.length]
            self._num_taken[node.length] += 1
            if not node.finish_code:
                self._num_unfinished[node.length] += 1
                return node
            if self._plan.beams is None or rank < self._plan.beams:
                self._add_finished(node)
            else:
                self._pruned_bound = max(self._pruned_bound, node.score)
        return None

    def _can_prune(self, children: Children) -> bool:
        if self._plan.beams is None:
            return children.bound <= self._prune_threshold
        # With beams, a hypothesis that cannot win still displaces another of its length, as in beam search.
        # So children are pruned only if the whole queue can be pruned.
        queue = [children, *(others for *_, others in self._queue)]
        is_over = all(waiting.bound <= self._prune_threshold for waiting in queue)
        return is_over or self._num_unfinished[children.length] >= self._plan.beams

    def _pruned(self, children: Children) -> Children:
        """The children up to the last one that may be taken."""
        if self._plan.beams is None and not children.exhausted:
            number = int((children.max_bounds > self._prune_threshold).sum())
            if number > self._budget:
                number, self._is_cut = int(self._budget), True
            if number < len(children.tokens):
                self._pruned_bound = max(self._pruned_bound, float(children.max_bounds[number]))
                children.truncate(number)
        return children

    def _push(self, children: Children) -> None:
        if not children.exhausted:
            heapq.heappush(self._queue, (self._plan.priority(children), next(self._insertions), children))

    def _add_finished(self, node: Node) -> None:
        """Add a finished node unless its score is minus infinity; among equal scores the first stays."""
        if math.isnan(node.score):
            raise nan_score()
        if node.score == -torch.inf:
            return
        place = bisect_right(self.finished, -node.score, key=lambda other: -other.score)
        self.finished.insert(place, node)
        if len(self.finished) > self._plan.num_return:
            self._runner_up = max(self._runner_up, self.finished.pop().score)
