"""The tree of a prompt's texts, as far as an exact search has seen it."""

import heapq
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import torch

from decodekit.decoders.beam.state import nan_score
from decodekit.decoders.exact.branch import Branch, Node
from decodekit.decoders.exact.expand import Expanded


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a tree is searched.

    Attributes:
        order: Of the branches that wait, the one of which this is least comes first.
        num_return: How many texts are wanted.
        max_nodes: How many texts' next tokens may be looked at; None: any number.
        beams: How many texts of each length may go on, those of the greatest sums; None: any number.
        at_once: How many texts are looked at in a round.
    """

    order: Callable[[Branch], tuple[float, ...]]
    num_return: int = 1
    max_nodes: int | None = None
    beams: int | None = None
    at_once: int = 1


class Tree:
    """What waits of a prompt's texts, what has ended, and what was let go.

    Args:
        plan: How it is searched.
        finish: Says what has finished a text; 0: nothing has.
    """

    def __init__(self, plan: Plan, finish: Callable[[Node], int]) -> None:
        self.nodes = 1  # texts whose next tokens were looked at: the prompt is one
        self.finished: list[Node] = []  # the best, best first
        self._plan, self._finish = plan, finish
        self._waiting: list[tuple[tuple[float, ...], int, Branch]] = []
        self._number = count()  # of two branches that are tied the older comes first
        self._rises = False  # whether a token has added more than 0: then no bound holds
        self._lost = -torch.inf  # the greatest bound of what was let go
        self._next = -torch.inf  # the best score of what has ended and is not among the finished
        self._is_cut = False  # whether texts were let go because the budget would not reach them
        self._seen: Counter[int] = Counter()  # texts of every length
        self._gone_on: Counter[int] = Counter()  # those of them that had not ended

    @property
    def worst(self) -> float:
        """The score of the last text that is wanted; minus infinity where there are fewer."""
        return self.finished[-1].score if self._is_full else -torch.inf

    @property
    def bound(self) -> float:
        """What no text but the finished ones scores more than."""
        bound = max([self._lost, *(branch.bound for *_, branch in self._waiting)])
        if self._rises and bound > -torch.inf:
            bound = torch.inf
        return max(bound, self._next)

    @property
    def is_stuck(self) -> bool:
        """Whether every text was looked at that may be, and none can end."""
        return not (self.finished or self._waiting or self._is_cut)

    def expand(self, expanded: Expanded) -> None:
        """Takes in how a text goes on."""
        self._rises = self._rises or expanded.rises
        ended = expanded.ended
        while ended.waits and not (self._is_full and ended.bound <= self.worst):
            node = ended.take()
            node.finish_code = self._finish(node)
            self._end(node)
        if ended.waits:
            self._next = max(self._next, ended.bound)
        self._wait(self._trimmed(expanded.going))

    def pick(self) -> list[Node]:
        """The texts that are to be looked at next; none: the search is over."""
        most = min(self._plan.at_once, self._budget)
        picked: list[Node] = []
        while len(picked) < most and (node := self._first()) is not None:
            picked.append(node)
        self.nodes += len(picked)
        return picked

    @property
    def _is_full(self) -> bool:
        return len(self.finished) == self._plan.num_return

    @property
    def _budget(self) -> float:
        """How many more texts may be looked at."""
        return torch.inf if self._plan.max_nodes is None else self._plan.max_nodes - self.nodes

    @property
    def _floor(self) -> float:
        """What is bounded by no more than this can be let go."""
        return -torch.inf if self._rises else self.worst

    def _first(self) -> Node | None:
        """The next text that goes on."""
        while self._waiting:
            *_, branch = heapq.heappop(self._waiting)
            if self._is_over(branch):
                self._lost = max(self._lost, branch.bound)
                continue
            node = branch.take()
            self._wait(branch)
            node.finish_code = self._finish(node)
            place = self._seen[node.length]
            self._seen[node.length] += 1
            if not node.finish_code:
                self._gone_on[node.length] += 1
                return node
            if self._plan.beams is None or place < self._plan.beams:
                self._end(node)
            else:
                self._lost = max(self._lost, node.score)
        return None

    def _is_over(self, branch: Branch) -> bool:
        """Whether nothing that waits in a branch is to be looked at."""
        if self._plan.beams is None:
            return branch.bound <= self._floor
        # With beams a text that is no good takes the place of another of its length all the same, so a
        # branch is not let go before all are.
        everything = [branch, *(other for *_, other in self._waiting)]
        is_done = all(other.bound <= self._floor for other in everything)
        return is_done or self._gone_on[branch.length] >= self._plan.beams

    def _trimmed(self, branch: Branch) -> Branch:
        """The branch without what will not be looked at."""
        if self._plan.beams is None and branch.waits:
            number = int((branch.most > self._floor).sum())
            if number > self._budget:
                number, self._is_cut = int(self._budget), True
            if number < len(branch.tokens):
                self._lost = max(self._lost, float(branch.most[number]))
                branch.cut(number)
        return branch

    def _wait(self, branch: Branch) -> None:
        if branch.waits:
            heapq.heappush(self._waiting, (self._plan.order(branch), next(self._number), branch))

    def _end(self, node: Node) -> None:
        """Takes in a text that has ended, if it is allowed; of tied ones the first stays."""
        if math.isnan(node.score):
            raise nan_score()
        if node.score == -torch.inf:
            return
        place = bisect_right(self.finished, -node.score, key=lambda other: -other.score)
        self.finished.insert(place, node)
        if len(self.finished) > self._plan.num_return:
            self._next = max(self._next, self.finished.pop().score)
