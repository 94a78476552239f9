"""How far texts are with what they must contain, in arrays that a device can walk."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, final

import torch
from jaxtyping import Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.decoders.constrained_beam.joint_distances import joint_distances
from decodekit.errors import DecodekitError

# What is looked for one after the other: of each the phrases of which one is enough.
Quest = Sequence[Sequence[Sequence[int]]]
MET = 0  # the state in which nothing is missing any more


@final
@dataclass(frozen=True, eq=False)
class PhraseAutomaton:
    """Automata that look for phrases, one after the other, all numbered through.

    A state says how much of a phrase the text ends with (Knuth, Morris & Pratt, 1977; of several phrases
    Aho & Corasick, 1975), so that a phrase that breaks off falls back to as much of it as is still there.

    Attributes:
        edges: `state * stride + id` of every move that does not lead to the root, ascending, and a last one
            that is none.
        targets: The state that each leads to.
        roots: Where every state's other moves lead.
        left: The fewest tokens that each state still needs.
        whole: What the beginning of its quest needed.
        ahead: The ids that bring each state further, filled up with -1.
        starts: Where every prompt's quests begin, filled up with `MET`; one row: those of all prompts.
        joint: States of all quests of a prompt, as one number each, ascending, and a last one that is none.
        joint_left: The fewest tokens that each of them needs to meet all, where they may overlap.
        stride: Above every id.
    """

    edges: Int64[Tensor, " edges"]
    targets: Int64[Tensor, " edges"]
    roots: Int64[Tensor, " states"]
    left: Int64[Tensor, " states"]
    whole: Int64[Tensor, " states"]
    ahead: Int64[Tensor, "states most"]
    starts: Int64[Tensor, "prompts quests"]
    joint: Int64[Tensor, " joint"]
    joint_left: Int64[Tensor, " joint"]
    stride: int

    @classmethod
    def build(cls, prompts: Sequence[Sequence[Quest]]) -> "PhraseAutomaton":
        """The automata of the quests of every prompt."""
        states = [_State({}, MET, 0, 0, ())]
        begins = [[_add(quest, states) for quest in quests] for quests in prompts]
        width = max([1, *map(len, begins)])
        stride = 1 + max([0, *(token for state in states for token in state.moves)])
        moves = sorted(
            (number * stride + token, target)
            for number, state in enumerate(states)
            for token, target in state.moves.items()
        )
        begins = [begin + [MET] * (width - len(begin)) for begin in begins]
        joint = _together(begins, states)
        most = max(1, *(len(state.ahead) for state in states))
        return cls(
            edges=torch.tensor([*(edge for edge, _ in moves), 2**63 - 1]),
            targets=torch.tensor([*(target for _, target in moves), MET]),
            roots=torch.tensor([state.root for state in states]),
            left=torch.tensor([state.left for state in states]),
            whole=torch.tensor([state.whole for state in states]),
            ahead=torch.tensor([[*state.ahead, *[-1] * (most - len(state.ahead))] for state in states]),
            starts=torch.tensor(begins),
            joint=torch.tensor([*(number for number, _ in joint), 2**63 - 1]),
            joint_left=torch.tensor([*(left for _, left in joint), 0]),
            stride=stride,
        )

    def begin(self, who: str, history: History) -> Int64[Tensor, "rows quests"]:
        """The states of rows that have said nothing yet."""
        prompts = len(self.starts)
        if prompts not in {1, history.batch}:
            raise DecodekitError(
                f"{who}: constraints must be one list, or one for each prompt, got {prompts} for "
                f"{history.batch} prompts."
            )
        return history.spread(self.starts.expand(history.batch, -1))

    def after(
        self, states: Int64[Tensor, "rows quests"], tokens: Int64[Tensor, " rows"]
    ) -> Int64[Tensor, "rows quests"]:
        """The states after one more token on every row."""
        edges = states * self.stride + tokens[:, None]
        places = torch.searchsorted(self.edges, edges).clamp(max=len(self.edges) - 1)
        # An id of the stride or above would be taken for another state's edge.
        leads = (tokens[:, None] < self.stride) & (_at(self.edges, places) == edges)
        return torch.where(leads, _at(self.targets, places), _at(self.roots, states))

    def missing(self, states: Int64[Tensor, "rows quests"]) -> Int64[Tensor, " rows"]:
        """As many tokens as are enough for a row to meet every constraint; 0: it has.

        Only the constraint that is furthest counts as begun, since going on with one may break off another:
        so some next token always makes the number smaller.
        """
        left, whole = _at(self.left, states), _at(self.whole, states)
        unmet = whole.masked_fill(left == 0, 0)
        return unmet.sum(-1) - (unmet - left).amax(-1)

    def fewest(self, states: Int64[Tensor, "rows quests"]) -> Int64[Tensor, " rows"]:
        """No fewer tokens than this meet every constraint; they may overlap.

        And this many do, unless there are very many states: then it is what the furthest alone needs.
        """
        numbers = torch.zeros_like(states[:, 0])
        for state in states.unbind(-1):
            numbers = numbers * len(self.left) + state
        places = torch.searchsorted(self.joint, numbers).clamp(max=len(self.joint) - 1)
        known = self.joint.index_select(0, places) == numbers
        return torch.where(known, self.joint_left.index_select(0, places), _at(self.left, states).amax(-1))

    def next_ids(self, states: Int64[Tensor, "rows quests"]) -> Int64[Tensor, "rows next"]:
        """The ids that bring a row further with a constraint; -1: none."""
        return self.ahead.index_select(0, states.flatten()).view(len(states), -1)


@lru_cache(maxsize=16)
def on_device(progress: PhraseAutomaton, device: torch.device) -> PhraseAutomaton:
    """A device's copy of the automata, made once: a copy a step would stall the device's stream."""
    return replace(
        progress,
        edges=progress.edges.to(device),
        targets=progress.targets.to(device),
        roots=progress.roots.to(device),
        left=progress.left.to(device),
        whole=progress.whole.to(device),
        ahead=progress.ahead.to(device),
        starts=progress.starts.to(device),
        joint=progress.joint.to(device),
        joint_left=progress.joint_left.to(device),
    )


class _State(NamedTuple):
    """A state of an automaton, on the host."""

    moves: dict[int, int]
    root: int
    left: int
    whole: int
    ahead: tuple[int, ...]


def _together(begins: Sequence[Sequence[int]], states: Sequence[_State]) -> list[tuple[int, int]]:
    """The states of all quests of a prompt as one number, and the fewest tokens until all are met."""
    count, width = len(states), len(begins[0])
    if width == 1 or count**width >= 2**62:  # one alone is known, and so many have no numbers
        return []

    def move(state: int, token: int | None) -> int:
        return states[state].root if token is None else states[state].moves.get(token, states[state].root)

    found: dict[int, int] = {}
    for begin in begins:
        ids = sorted(_ids_from(set(begin), states))
        for together, left in joint_distances(tuple(begin), move, ids, MET).items():
            number = 0
            for state in together:
                number = number * count + state
            found[number] = left
    return sorted(found.items())


def _ids_from(begins: set[int], states: Sequence[_State]) -> set[int]:
    """The ids that lead anywhere from some states or those behind them."""
    reached = list(begins)
    for number in reached:
        reached += [target for target in states[number].moves.values() if target not in reached]
    return {token for number in reached for token in states[number].moves}


def _add(quest: Quest, states: list[_State]) -> int:
    """Adds the states that look for some things one after the other; returns the first."""
    whole = sum(min(map(len, phrases)) for phrases in quest)
    begin, beyond = MET, 0
    for phrases in reversed(quest):
        moves, left, ahead = _automaton(phrases)
        first = len(states)
        # Where a phrase is complete, the search for what comes after it begins.
        numbers, number = [], first
        for distance in left:
            numbers.append(number if distance else begin)
            number += distance > 0
        states += [
            _State(
                moves={token: numbers[target] for token, target in moves[node].items()},
                root=first,
                left=distance + beyond,
                whole=whole,
                ahead=ahead[node],
            )
            for node, distance in enumerate(left)
            if distance
        ]
        begin, beyond = first, beyond + left[0]
    return begin


def _automaton(
    phrases: Sequence[Sequence[int]],
) -> tuple[list[dict[int, int]], list[int], list[tuple[int, ...]]]:
    """What looks for one of several phrases: a node a prefix, the first of them the empty one.

    Returns:
        Of every node its moves that do not lead to the first node, the fewest tokens until a phrase is
        complete, and the ids that lead to more of a phrase or closer to a complete one.
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
    # The longest proper suffix of a node that is a node; its moves are known before the node's.
    moves, suffix, order = [dict(one) for one in children], [0] * len(children), [0]
    for node in order:
        moves[node] = {**moves[suffix[node]], **children[node]} if node else moves[0]
        for token, child in children[node].items():
            suffix[child] = moves[suffix[node]].get(token, 0) if node else 0
            if suffix[child] in complete:
                complete.add(child)
            order.append(child)
    left = _distances(moves, complete, order)
    ahead = [
        tuple(token for token, to in moves[node].items() if token in children[node] or left[to] < left[node])
        for node in range(len(children))
    ]
    return moves, left, ahead


def _distances(moves: list[dict[int, int]], complete: set[int], order: list[int]) -> list[int]:
    """The fewest moves from every node to a complete one."""
    left = [0 if node in complete else len(moves) for node in range(len(moves))]
    changed = True
    while changed:
        before = list(left)
        for node in reversed(order):
            if node not in complete:
                left[node] = 1 + min(left[target] for target in moves[node].values())
        changed = left != before
    return left


def _at(
    table: Int64[Tensor, " states"], places: Int64[Tensor, "rows quests"]
) -> Int64[Tensor, "rows quests"]:
    """The entries of a table."""
    return table.index_select(0, places.flatten()).view_as(places)
