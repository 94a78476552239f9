"""Progress with constraints, as states of automata in tensors."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, final

import torch
from jaxtyping import Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.errors import DecodekitError

Place = TypeVar("Place", bound=Hashable)
# Sets of phrases to match one after the other; any one phrase of a set matches it.
Goal = Sequence[Sequence[Sequence[int]]]
MET = 0  # the state of a goal that is met

# Maximum of joint states of several goals: to build that many takes about a second.
MAX_JOINT_STATES = 2**13


@final
@dataclass(frozen=True, eq=False)
class PhraseAutomaton:
    """Automata that match the phrases of all goals; their states are numbered consecutively.

    A state is the longest beginning of a phrase that the tokens end with (Knuth, Morris & Pratt, 1977; for
    several phrases Aho & Corasick, 1975). A phrase that breaks off falls back to the part that still matches.
    """

    edges: Int64[Tensor, " edges"]  # `state * stride + id` of transitions, ascending, and a sentinel
    targets: Int64[Tensor, " edges"]  # the state that each edge leads to
    roots: Int64[Tensor, " states"]  # the state that all other tokens lead to
    remaining: Int64[Tensor, " states"]  # fewest tokens from each state until its goal is met
    total: Int64[Tensor, " states"]  # fewest tokens from the first state of its goal
    next_ids: Int64[Tensor, "states next"]  # ids that advance each state, padded with -1
    starts: Int64[Tensor, "prompts goals"]  # first states, padded with `MET`; one row if prompts share them
    joint_states: Int64[Tensor, " joint"]  # of all goals, each as one number, ascending, and a sentinel
    joint_remaining: Int64[Tensor, " joint"]  # fewest tokens until all goals are met, overlaps included
    stride: int  # greater than every id

    @classmethod
    def build(cls, prompts: Sequence[Sequence[Goal]]) -> "PhraseAutomaton":
        """The automata of the goals of every prompt."""
        states = [_State({}, MET, 0, 0, ())]
        starts = [[_add_goal(goal, states) for goal in goals] for goals in prompts]
        width = max([1, *map(len, starts)])
        starts = [start + [MET] * (width - len(start)) for start in starts]
        stride = 1 + max([0, *(token for state in states for token in state.moves)])
        edges = sorted(
            (number * stride + token, target)
            for number, state in enumerate(states)
            for token, target in state.moves.items()
        )
        joint = _joint_remaining(starts, states)
        most = max(1, *(len(state.next_ids) for state in states))
        return cls(
            edges=torch.tensor([*(edge for edge, _ in edges), 2**63 - 1]),
            targets=torch.tensor([*(target for _, target in edges), MET]),
            roots=torch.tensor([state.root for state in states]),
            remaining=torch.tensor([state.remaining for state in states]),
            total=torch.tensor([state.total for state in states]),
            next_ids=torch.tensor([[*s.next_ids, *[-1] * (most - len(s.next_ids))] for s in states]),
            starts=torch.tensor(starts),
            joint_states=torch.tensor([*(number for number, _ in joint), 2**63 - 1]),
            joint_remaining=torch.tensor([*(remaining for _, remaining in joint), 0]),
            stride=stride,
        )

    def start(self, who: str, history: History) -> Int64[Tensor, "rows goals"]:
        """The states of rows without new tokens. Raises if the number of prompts is another."""
        prompts = len(self.starts)
        if prompts not in {1, history.batch}:
            raise DecodekitError(
                f"{who}: constraints must be one list, or one for each prompt, got {prompts} for "
                f"{history.batch} prompts."
            )
        return history.to_rows(self.starts.expand(history.batch, -1))

    def advance(
        self, states: Int64[Tensor, "rows goals"], tokens: Int64[Tensor, " rows"]
    ) -> Int64[Tensor, "rows goals"]:
        """The states after one more token on every row."""
        edges = states * self.stride + tokens[:, None]
        places = torch.searchsorted(self.edges, edges).clamp(max=len(self.edges) - 1)
        # Without the comparison, an id of at least the stride could be taken for another state's edge.
        is_edge = (tokens[:, None] < self.stride) & (_lookup(self.edges, places) == edges)
        return torch.where(is_edge, _lookup(self.targets, places), _lookup(self.roots, states))

    def missing(self, states: Int64[Tensor, "rows goals"]) -> Int64[Tensor, " rows"]:
        """Number of tokens that suffice for each row to meet all goals; 0 if it meets them.

        Only the goal that is closest counts as begun, because its next token may break off the others. So
        some next token always reduces the number.
        """
        remaining, total = _lookup(self.remaining, states), _lookup(self.total, states)
        unmet = total.masked_fill(remaining == 0, 0)
        return unmet.sum(-1) - (unmet - remaining).amax(-1)

    def min_missing(self, states: Int64[Tensor, "rows goals"]) -> Int64[Tensor, " rows"]:
        """Lower bound on the number of tokens that each row needs to meet all goals.

        It is exact, overlaps of phrases included, up to `MAX_JOINT_STATES` joint states. With more it is
        the number that the furthest goal needs alone.
        """
        joint = torch.zeros_like(states[:, 0])
        for state in states.unbind(-1):
            joint = joint * len(self.remaining) + state
        places = torch.searchsorted(self.joint_states, joint).clamp(max=len(self.joint_states) - 1)
        is_known = self.joint_states.index_select(0, places) == joint
        furthest = _lookup(self.remaining, states).amax(-1)
        return torch.where(is_known, self.joint_remaining.index_select(0, places), furthest)

    def advancing_ids(self, states: Int64[Tensor, "rows goals"]) -> Int64[Tensor, "rows next"]:
        """Ids that advance a goal of each row, padded with -1."""
        return self.next_ids.index_select(0, states.flatten()).view(len(states), -1)


@lru_cache(maxsize=16)
def on_device(automaton: PhraseAutomaton, device: torch.device) -> PhraseAutomaton:
    """A copy on a device, made once: a copy at every step would stall the device's stream."""
    fields: dict[str, Any] = {
        name: value.to(device) for name, value in vars(automaton).items() if isinstance(value, Tensor)
    }
    return replace(automaton, **fields)


def _lookup(
    table: Int64[Tensor, " entries"], indices: Int64[Tensor, "rows goals"]
) -> Int64[Tensor, "rows goals"]:
    return table.index_select(0, indices.flatten()).view_as(indices)


class _State(NamedTuple):
    """A state of an automaton, on the host: the fields of `PhraseAutomaton` for it."""

    moves: dict[int, int]
    root: int
    remaining: int
    total: int
    next_ids: tuple[int, ...]

    def after(self, token: int | None) -> int:
        """The state after a token; None is a token that leads to the root."""
        return self.root if token is None else self.moves.get(token, self.root)


def _add_goal(goal: Goal, states: list[_State]) -> int:
    """Append the states that match the sets of a goal one after the other; return the first of them."""
    total = sum(min(map(len, phrases)) for phrases in goal)
    start, remaining_after = MET, 0
    for phrases in reversed(goal):
        moves, distances, next_ids = _match_any(phrases)
        root = len(states)
        # A node that completes a phrase is the first state of the next set.
        numbers, number = [], root
        for distance in distances:
            numbers.append(number if distance else start)
            number += distance > 0
        states += [
            _State(
                moves={token: numbers[target] for token, target in moves[node].items()},
                root=root,
                remaining=distance + remaining_after,
                total=total,
                next_ids=next_ids[node],
            )
            for node, distance in enumerate(distances)
            if distance
        ]
        start, remaining_after = root, remaining_after + distances[0]
    return start


def _match_any(
    phrases: Sequence[Sequence[int]],
) -> tuple[list[dict[int, int]], list[int], list[tuple[int, ...]]]:
    """An Aho-Corasick automaton of some phrases, with a node for every prefix; the first is the root.

    Returns:
        For every node: its transitions that do not lead to the root; the fewest tokens until a phrase is
        complete; the ids that extend a prefix or lead closer to a complete phrase.
    """
    children: list[dict[int, int]] = [{}]
    complete = set()
    for ids in phrases:
        node = 0
        for token in ids:
            if token not in children[node]:
                children[node][token] = len(children)
                children.append({})
            node = children[node][token]
        complete.add(node)
    # A node's suffix is the longest proper suffix of its prefix that has a node, too.
    moves, suffix, order = [dict(one) for one in children], [0] * len(children), [0]
    for node in order:
        moves[node] = {**moves[suffix[node]], **children[node]} if node else moves[0]
        for token, child in children[node].items():
            suffix[child] = moves[suffix[node]].get(token, 0) if node else 0
            if suffix[child] in complete:
                complete.add(child)
            order.append(child)
    edges = ((node, target) for node, targets in enumerate(moves) for target in targets.values())
    nearest = _distances(complete, edges)
    distances = [nearest[node] for node in range(len(moves))]
    next_ids = [
        tuple(
            token
            for token, target in moves[node].items()
            if token in children[node] or distances[target] < distances[node]
        )
        for node in range(len(children))
    ]
    return moves, distances, next_ids


def _distances(targets: Iterable[Place], edges: Iterable[tuple[Place, Place]]) -> dict[Place, int]:
    """The fewest edges to a target from every place, given the places that edges join."""
    sources = defaultdict(list)
    for source, target in edges:
        sources[target].append(source)
    nearest = list(targets)
    distances = dict.fromkeys(nearest, 0)
    for place in nearest:
        for source in sources[place]:
            if source not in distances:
                distances[source] = distances[place] + 1
                nearest.append(source)
    return distances


def _joint_remaining(starts: Sequence[Sequence[int]], states: Sequence[_State]) -> list[tuple[int, int]]:
    """Joint states of all goals of a prompt, each as one number, and the fewest tokens until all are met."""
    count, width = len(states), len(starts[0])
    if width == 1 or count**width >= 2**62:  # one goal needs no joint states; too many have no numbers
        return []
    remaining: dict[int, int] = {}
    for start in starts:
        for joint, distance in _joint_distances(tuple(start), states).items():
            number = 0
            for state in joint:
                number = number * count + state
            remaining[number] = distance
    return sorted(remaining.items())


def _known_ids(start: Sequence[int], states: Sequence[_State]) -> list[int]:
    """Ids that have a transition in some state reachable from the given ones."""
    reachable = list(set(start))
    for number in reachable:
        reachable += [target for target in states[number].moves.values() if target not in reachable]
    return sorted({token for number in reachable for token in states[number].moves})


def _joint_distances(start: tuple[int, ...], states: Sequence[_State]) -> dict[tuple[int, ...], int]:
    """The fewest tokens from every reachable joint state until all goals are met; empty if too many."""
    ids = _known_ids(start, states)
    joint_states, known, edges = [start], {start}, []
    for joint in joint_states:
        for token in (*ids, None):
            after = tuple(states[number].after(token) for number in joint)
            if after not in known:
                if len(joint_states) == MAX_JOINT_STATES:
                    return {}
                joint_states.append(after)
                known.add(after)
            edges.append((joint, after))
    return _distances([(MET,) * len(start)], edges)
