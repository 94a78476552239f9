"""Checks of arguments: conditions, their messages, and reading of ids."""

from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from torch import Tensor

# Of single precision, which scores are: the largest number, and the least that has all its digits.
MOST, LEAST = (2 - 2**-23) * 2.0**127, 2.0**-126


def plain(value: Any) -> Any:  # noqa: ANN401
    """The value without torch or numpy: tensors and arrays as lists, their numbers as Python's."""
    return value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else value


def is_number(value: object) -> TypeGuard[float]:
    """True for a real number; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite(value: object) -> TypeGuard[float]:
    """True for a number that single precision can hold."""
    return is_number(value) and -MOST <= value <= MOST


def is_positive(value: object) -> TypeGuard[float]:
    """True for a finite number above 0 that single precision does not round to 0."""
    return is_number(value) and LEAST <= value <= MOST


def is_count(value: object, least: int) -> TypeGuard[int]:
    """True for an integer of at least `least`, of 64 bits; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) < 2**63


class Requirement(NamedTuple):
    """A condition on an argument, its words in messages ("must be ..."), and advice after them."""

    holds: Callable[[Any], bool]
    words: str
    advice: str = ""

    def check(self, who: str, name: str, value: object) -> None:
        """Raise a `ValueError` unless the value meets the condition."""
        if not self.holds(value):
            advice = f" {self.advice}" if self.advice else ""
            raise ValueError(f"{who}: {name} must be {self.words}, got {value!r}.{advice}")


FINITE = Requirement(is_finite, "a finite number")
POSITIVE = Requirement(is_positive, "a finite number above 0")
NON_NEGATIVE = Requirement(lambda value: is_finite(value) and value >= 0, "a finite number of at least 0")
FRACTION = Requirement(lambda value: is_number(value) and 0 <= value <= 1, "in [0, 1]")
POSITIVE_FRACTION = Requirement(lambda value: is_number(value) and 0 < value <= 1, "in (0, 1]")
OPEN_FRACTION = Requirement(lambda value: is_number(value) and 0 < value < 1, "strictly between 0 and 1")
FLAG = Requirement(lambda value: isinstance(value, bool), "True or False")


def at_least(least: int) -> Requirement:
    """The requirement of an integer of at least `least`."""
    return Requirement(lambda value: is_count(value, least), f"an integer of at least {least}")


def check_fields(instance: object, **requirements: Requirement) -> None:
    """Raise a `ValueError` for the first field that does not meet its requirement."""
    for name, requirement in requirements.items():
        requirement.check(type(instance).__name__, name, getattr(instance, name))


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
