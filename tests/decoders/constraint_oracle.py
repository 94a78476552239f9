"""What texts contain, found by looking at every place."""

from collections.abc import Sequence

import decodekit as dk

Constraint = dk.Phrase | dk.OneOf


def ends_of(text: Sequence[int], constraint: Constraint, start: int) -> list[int]:
    """The places in a text after an occurrence that begins at `start` or later."""
    return [
        end
        for end in range(start, len(text) + 1)
        if any(
            end - len(ids) >= start and tuple(text[end - len(ids) : end]) == ids
            for ids in constraint.alternatives
        )
    ]


def meets(text: Sequence[int], constraints: Sequence[Constraint], *, ordered: bool) -> bool:
    """Whether a text contains all of them, tried in every way."""
    if not ordered:
        return all(ends_of(text, constraint, 0) for constraint in constraints)
    starts = {0}
    for constraint in constraints:
        starts = {end for start in starts for end in ends_of(text, constraint, start)}
    return bool(starts)


def enough(constraints: Sequence[Constraint]) -> int:
    """Tokens in which all of them can be said."""
    return sum(min(map(len, constraint.alternatives)) for constraint in constraints)
