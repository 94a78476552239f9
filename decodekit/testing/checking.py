"""Checks of laws, and their messages."""

import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

from decodekit.core.validation import plain


def repeatable(max_examples: int) -> settings:
    """Settings for the same random cases in every run, and one error at a time."""
    return settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


def name_of(part: object) -> str:
    """The repr of a part, or the name of its class if it does not define a repr."""
    return type(part).__name__ if type(part).__repr__ is object.__repr__ else repr(part)


def check(holds: object, law: str, **case: object) -> None:
    """Raise an `AssertionError` with the law and the case, unless the law holds."""
    if not holds:
        found = ", ".join(f"{name.replace('_', ' ')} {plain(value)!r}" for name, value in case.items())
        raise AssertionError(f"{law}: {found}." if found else f"{law}.")


def are_close(expected: Tensor, actual: Tensor, *, atol: float, rtol: float = 0.0) -> bool:
    """True if two tensors have the same shape and dtype and, up to rounding, the same numbers."""
    same_form = expected.shape == actual.shape and expected.dtype == actual.dtype
    return same_form and torch.allclose(actual, expected, atol=atol, rtol=rtol)
