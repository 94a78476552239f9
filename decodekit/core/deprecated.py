"""Deprecated names and keyword arguments, which still work and warn."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

_Call = TypeVar("_Call", bound=Callable[..., object])


def renamed_names(
    module: str, lookup: Callable[[str], object], renamed: Mapping[str, str], *, removed_in: str
) -> Callable[[str], object]:
    """Return a module's `__getattr__` that also finds old names, and warns of them.

    Args:
        module: The module's `__name__`.
        lookup: The `__getattr__` that finds the current names, as `lazy_loader.attach_stub` returns it.
        renamed: Each old name with the current one.
        removed_in: The version that no longer has the old names.

    Example:
        >>> find = renamed_names("kit", {"TopP": dk.TopP}.get, {"Nucleus": "TopP"}, removed_in="0.4.0")
        >>> with warnings.catch_warnings(action="ignore"):
        ...     find("Nucleus")(0.9)
        TopP(p=0.9, min_tokens_to_keep=1)
    """

    def find(name: str) -> object:
        current = renamed.get(name)
        if current is None:
            return lookup(name)
        _warn(f"{module}.{name} is now {module}.{current}, and will be removed in {removed_in}.")
        return lookup(current)

    return find


def renamed_keywords(*, removed_in: str, **renamed: str) -> Callable[[_Call], _Call]:
    """Return a decorator that accepts old keyword arguments of a function or a class, and warns of them.

    The signature in the documentation remains that of the current names. A class keeps its identity: its
    `__init__` is decorated.

    Args:
        removed_in: The version that no longer has the old keywords.
        renamed: Each old keyword with the current one.

    Example:
        >>> @renamed_keywords(removed_in="0.4.0", width="beams")
        ... def search(*, beams: int) -> int:
        ...     return beams
        >>> with warnings.catch_warnings(action="ignore"):
        ...     search(width=3)
        3
    """

    def decorate(call: _Call) -> _Call:
        if isinstance(call, type):
            accept = _with_old_keywords(vars(call)["__init__"], call.__name__, renamed, removed_in)
            type.__setattr__(call, "__init__", accept)
            return call
        return cast("_Call", _with_old_keywords(call, call.__name__, renamed, removed_in))

    return decorate


def _with_old_keywords(
    call: Callable[..., object], name: str, renamed: Mapping[str, str], removed_in: str
) -> Callable[..., object]:
    @functools.wraps(call)
    def accept(*args: object, **given: object) -> object:
        for old in renamed.keys() & given.keys():
            current = renamed[old]
            if current in given:
                raise TypeError(f"{name}: {old} is now {current}, got both. Leave {old} out.")
            _warn(f"{name}: {old} is now {current}, and will be removed in {removed_in}.")
            given[current] = given.pop(old)
        return call(*args, **given)

    accept.old_keywords = renamed.keys()  # type: ignore[attr-defined] # for `check_options`
    return accept


def _warn(message: str) -> None:
    # The frames above: this function, the function that accepts the old name, its caller.
    warnings.warn(message, DeprecationWarning, stacklevel=3)
