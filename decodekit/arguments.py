"""What arguments of parts may be."""

from collections.abc import Iterable
from numbers import Real
from typing import TypeGuard

from torch import Tensor


def is_number(value: object) -> TypeGuard[float]:
    """Whether an argument is a real number; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_count(value: object, least: int) -> TypeGuard[int]:
    """Whether an argument is an integer of at least `least`; True and False are not."""
    return type(value) is int and value >= least


def read_ids(who: str, ids: int | Iterable[int]) -> tuple[int, ...]:
    """One id or several, as a tuple. Raises unless every one is an integer of at least 0."""
    plain = ids.tolist() if isinstance(ids, Tensor) else ids
    several = tuple(plain) if isinstance(plain, Iterable) else (plain,)
    for token in several:
        if not is_count(token, 0):
            raise ValueError(f"{who}: token ids must be integers of at least 0, got {token!r}.")
    return several
