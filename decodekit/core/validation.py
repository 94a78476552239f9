"""What arguments of parts may be."""

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np
from torch import Tensor

# Of single precision, which scores are: the largest number, and the least that has all its digits.
MOST, LEAST = (2 - 2**-23) * 2.0**127, 2.0**-126


def plain(value: Any) -> Any:  # noqa: ANN401
    """The value without torch or numpy: tensors and arrays as lists, their numbers as Python's."""
    return value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else value


def is_number(value: object) -> TypeGuard[float]:
    """Whether an argument is a real number; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite(value: object) -> TypeGuard[float]:
    """Whether an argument is a number that single precision can hold."""
    return is_number(value) and -MOST <= value <= MOST


def is_positive(value: object) -> TypeGuard[float]:
    """Whether an argument is a finite number above 0 that single precision does not round to 0."""
    return is_number(value) and LEAST <= value <= MOST


def is_count(value: object, least: int) -> TypeGuard[int]:
    """Whether an argument is an integer of at least `least`, of 64 bits; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) < 2**63


def read_ids(who: str, ids: int | Iterable[int]) -> tuple[int, ...]:
    """One id or several, as a tuple. Raises unless every one is an integer of at least 0."""
    given = plain(ids)
    several = isinstance(given, Iterable) and not isinstance(given, str | bytes | bytearray)
    read = tuple(plain(token) for token in given) if several else (given,)
    for token in read:
        if not is_count(token, 0):
            raise ValueError(f"{who}: token ids must be integers of at least 0, got {token!r}.")
    return read


def set_fields(instance: object, **values: object) -> None:
    """Set fields of a frozen dataclass, in its `__post_init__`."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)
