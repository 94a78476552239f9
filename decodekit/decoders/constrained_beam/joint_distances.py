"""How far a text is from meeting several constraints together, where they may overlap."""

from collections.abc import Callable, Collection

Together = tuple[int, ...]  # the state of every constraint

# States of several constraints together that are looked at, at most: building them takes about a second then.
MOST = 2**13


def joint_distances(
    begin: Together, move: Callable[[int, int | None], int], ids: Collection[int], met: int
) -> dict[Together, int]:
    """The fewest tokens from every state that can be reached until all constraints are met.

    Args:
        begin: Where they begin.
        move: The state after a state and an id; None: an id that no constraint knows.
        ids: Those that they know.
        met: The state of a constraint that is met.

    Returns:
        Nothing where there are too many states.
    """
    reached, come_from = [begin], {begin: list[Together]()}
    for states in reached:
        for token in (*ids, None):
            after = tuple(move(state, token) for state in states)
            if after not in come_from:
                if len(reached) == MOST:
                    return {}
                reached.append(after)
                come_from[after] = []
            come_from[after].append(states)
    goal = (met,) * len(begin)
    near, distances = [goal], {goal: 0}
    for states in near:
        for before in come_from[states]:
            if before not in distances:
                distances[before] = distances[states] + 1
                near.append(before)
    return distances
