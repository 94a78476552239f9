"""Parameters of processors: one number for all prompts, or one for each."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, final

import torch
from jaxtyping import Num, Shaped
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import plain
from decodekit.errors import DecodekitError

# What a person gives: a number, or as many as there are prompts.
PerPrompt = float | Sequence[float] | Num[Tensor, " batch"]


@final
class EachPrompt(tuple[float, ...]):
    """One number for each prompt of the batch, in the order of the prompts."""

    __slots__ = ()


def per_prompt(
    who: str,
    name: str,
    given: Any,  # noqa: ANN401 - it may be anything
    holds: Callable[[Any], bool],
    must: str,
    advice: str = "",
) -> PerPrompt:
    """A parameter as it is kept: the number itself, or an `EachPrompt`.

    Args:
        who: The class that takes it.
        name: What the class calls it.
        given: A number, or a sequence, tensor or array of one a prompt.
        holds: Whether one number is allowed.
        must: What `holds` asks for, as in "must be above 0".
        advice: What to do instead.

    Raises:
        ValueError: If a number is not allowed, or there are none.
    """
    numbers = plain(given)
    several = isinstance(numbers, Sequence) and not isinstance(numbers, str | bytes | bytearray)
    numbers = [plain(number) for number in numbers] if several else numbers
    for number in numbers if several else (numbers,):
        if not holds(number):
            raise ValueError(f"{who}: {name} must be {must}, got {number!r}.{advice and ' '}{advice}")
    if several and not numbers:
        raise ValueError(f"{who}: {name} must be one number, or one for each prompt, got none.")
    kept: PerPrompt = EachPrompt(numbers) if several else numbers
    return kept


def each(function: Callable[[Any], float], value: PerPrompt) -> PerPrompt:
    """The parameter with a function applied to its number or to each of them."""
    return (
        EachPrompt(function(number) for number in value) if isinstance(value, EachPrompt) else function(value)
    )


def largest(value: PerPrompt) -> float:
    """The parameter's number, or the largest of them: known without asking the device."""
    return max(value) if isinstance(value, EachPrompt) else value  # type: ignore[return-value]


def for_rows(value: PerPrompt, history: History, like: Tensor) -> float | Shaped[Tensor, "rows 1"]:
    """The parameter as it meets the scores: the number itself, or a column with each row's own.

    Args:
        value: As `per_prompt` keeps it.
        history: Says which prompt each row continues.
        like: Gives the dtype and the device.
    """
    if not isinstance(value, EachPrompt):
        return value  # type: ignore[return-value]
    return history.spread(_on_device(value, like.dtype, like.device))[:, None]


def check_one_a_prompt(processor: object, history: History) -> None:
    """Raises unless parameters that are given for each prompt are as many as there are prompts."""
    batch = history.batch
    for name, value in vars(processor).items():
        if isinstance(value, EachPrompt) and len(value) != batch:
            raise DecodekitError(
                f"{type(processor).__name__}: {name} must be one number, or one for each prompt, got "
                f"{len(value)} for {batch} prompts."
            )


@lru_cache(maxsize=256)
def _on_device(value: EachPrompt, dtype: torch.dtype, device: torch.device) -> Num[Tensor, " batch"]:
    # Made once: a copy a step would stall the device's stream.
    with torch.inference_mode(mode=False):  # it is kept, and may be used where gradients are taken
        return torch.tensor(value, dtype=dtype, device=device)
