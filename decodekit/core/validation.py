"""Checks of arguments: conditions, their messages, and reading of ids."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeGuard, TypeVar, cast, get_args

import numpy as np
from torch import Tensor

# Bounds of single precision, the precision of scores: the largest number, and the smallest normal number.
MOST, LEAST = (2 - 2**-23) * 2.0**127, 2.0**-126

# Options of other libraries, mostly transformers, with their names here; the first that exists is suggested.
FOREIGN = {
    "num_beams": ("beams",),
    "beam_size": ("beams",),
    "width": ("beams",),
    "num_beam_groups": ("groups",),
    "diversity_penalty": ("diversity", "strength"),
    "length_penalty": ("alpha", "scorer"),
    "early_stopping": ("stop_rule",),
    "num_return_sequences": ("num_return", "num_samples"),
    "n": ("num_samples", "num_return"),
    "top_p": ("p",),
    "top_k": ("k",),
    "min_p": ("p",),
    "typical_p": ("mass",),
    "penalty_alpha": ("penalty",),
    "max_time": ("seconds",),
    "max_length": ("max_new_tokens",),
    "seed": ("seeds",),
    "ngram_size": ("n",),
    "no_repeat_ngram_size": ("n",),
    "guidance_scale": ("scale", "weight"),
    "bad_words_ids": ("words",),
    "sequence_bias": ("biases",),
    "eos_token_id": ("end_ids", "ids"),
    "bos_token_id": ("bos_id",),
    "stop_strings": ("strings",),
    "draft_model": ("draft", "model"),
    "assistant_model": ("draft", "model"),
    "force_words_ids": ("constraints",),
}
VALUES = {"seeds": "[...], one per prompt"}  # values of options, for messages
Call = TypeVar("Call", bound=Callable[..., Any])


def shown(value: object, width: int = 80) -> str:
    """The repr of a value on one line, for messages; cut to `width` characters, the last an ellipsis."""
    text = " ".join(line.strip() for line in repr(value).splitlines())
    return text if len(text) <= width else text[: width - 1] + "…"


def closest(name: str, names: Iterable[str]) -> str | None:
    """The name closest to a misspelt one; None if no name is close."""
    from difflib import get_close_matches  # noqa: PLC0415 - for errors only

    short = {each.replace("_", "").lower(): each for each in names}
    misspelt = name.replace("_", "").lower()
    near = get_close_matches(misspelt, short, n=1)
    if not near and len(misspelt) > 2:  # noqa: PLR2004 - many names begin with any two letters
        near = [one for one in short if one.startswith(misspelt) or name.endswith(f"_{short[one]}")][:1]
    return short[near[0]] if near else None


def refuse_option(who: str, name: str, options: Iterable[str], advice: str | None = None) -> NoReturn:
    """Raise a `TypeError` that suggests the closest option."""
    options = list(options)
    meant = next((each for each in FOREIGN.get(name, ()) if each in options), None)
    meant = meant or closest(name, options)
    if advice is None:
        listed = f"It has {', '.join(options) or 'no options'}."
        advice = f"Did you mean {meant}={VALUES.get(meant, '')}?" if meant else listed
    raise TypeError(f"{who}: {name} is not an option. {advice}")


def check_options(who: str, call: Callable[..., object], given: Mapping[str, object]) -> None:
    """Raise a `TypeError` for a keyword that a function does not take."""
    if not given:
        return
    parameters = inspect.signature(call).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    options = [
        name
        for name, parameter in parameters.items()
        if name != "self" and parameter.kind not in {parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL}
    ]
    for name in given:
        if name not in options and name not in getattr(call, "old_keywords", ()):
            refuse_option(who, name, options)


def checked_options(function: Call) -> Call:
    """Decorator: refuse an unknown keyword, and suggest the closest option."""

    @wraps(function)
    def checked(*args: Any, **given: Any) -> Any:  # noqa: ANN401 - as the function
        check_options(function.__name__, function, given)
        return function(*args, **given)

    return cast("Call", checked)


class CheckedOptions:
    """Base of public classes, whose constructors refuse an unknown keyword and suggest the closest one."""

    if not TYPE_CHECKING:  # type checkers must see the signature of `__init__`

        def __new__(cls, *args: Any, **given: Any) -> Any:  # noqa: ANN401
            """Make an instance, as `object` does; called without arguments by `copy` and `pickle`."""
            make = super().__new__
            if make is not object.__new__:  # of another base class, such as tuple
                return make(cls, *args, **given)
            if cls.__init__ is not object.__init__:
                check_options(cls.__name__, cls.__init__, given)
            elif args or given:
                raise TypeError(f"{cls.__name__}: there must be no arguments, got {len(args) + len(given)}.")
            return make(cls)


def is_of_transformers(value: object, name: str = "") -> bool:
    """True if the type of a value, or a base of it, is a class of transformers whose name begins so."""
    return any(
        kind.__module__.split(".")[0] == "transformers" and kind.__name__.startswith(name)
        for kind in type(value).__mro__
    )


def check_type(who: str, name: str, value: object, kind: type, words: str, advice: str = "") -> None:
    """Raise a `TypeError` unless an argument is of a type."""
    if not isinstance(value, kind):
        if isinstance(value, type):
            advice = f"Pass an object: {value.__name__}(...)."
        raise TypeError(f"{who}: {name} must be {words}, got {shown(value)}. {advice}".rstrip())


def plain(value: Any) -> Any:  # noqa: ANN401
    """The value without torch or numpy: tensors and arrays as lists, their numbers as Python numbers."""
    return value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else value


def is_number(value: object) -> TypeGuard[float]:
    """True if an argument is a real number; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_finite(value: object) -> TypeGuard[float]:
    """True if an argument is a number that single precision can hold."""
    return is_number(value) and -MOST <= value <= MOST


def is_positive(value: object) -> TypeGuard[float]:
    """True if an argument is a finite number above 0 that single precision does not round to 0."""
    return is_number(value) and LEAST <= value <= MOST


def is_count(value: object, least: int) -> TypeGuard[int]:
    """True if an argument is an integer of at least `least`, of 64 bits; True and False are not."""
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
FROM_ONE = Requirement(lambda value: is_finite(value) and value >= 1, "a finite number of at least 1")
FRACTION = Requirement(lambda value: is_number(value) and 0 <= value <= 1, "in [0, 1]")
POSITIVE_FRACTION = Requirement(lambda value: is_number(value) and 0 < value <= 1, "in (0, 1]")
OPEN_FRACTION = Requirement(lambda value: is_number(value) and 0 < value < 1, "strictly between 0 and 1")
FLAG = Requirement(lambda value: isinstance(value, bool), "True or False")
TEXT = Requirement(lambda value: isinstance(value, str) and bool(value), "text of some length")


def one_of(literal: Any) -> Requirement:  # noqa: ANN401 - a `Literal`
    """The requirement of one of the values of a `Literal`."""
    choices = get_args(literal)
    return Requirement(lambda value: value in choices, f"one of {choices}")


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
