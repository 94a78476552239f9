"""Parameters of processors: one number for all prompts, or one per prompt."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import cycle, islice
from typing import Any

import torch
from jaxtyping import Num, Shaped
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import Requirement, plain, set_fields
from decodekit.processors.base import PromptValues

# A parameter of the caller: one number, or one per prompt.
PerPrompt = float | Sequence[float] | Num[Tensor, " batch"]


def per_prompt(who: str, name: str, given: Any, requirement: Requirement) -> PerPrompt:  # noqa: ANN401 - checked here
    """Return a checked parameter: the number itself, or a `PromptValues` of a sequence, tensor or array.

    Raises:
        ValueError: If a number does not meet the requirement, or there are none.
    """
    numbers = plain(given)
    is_sequence = isinstance(numbers, Sequence) and not isinstance(numbers, str | bytes | bytearray)
    values = [plain(number) for number in numbers] if is_sequence else [numbers]
    for value in values:
        requirement.check(who, name, value)
    if not values:
        raise ValueError(f"{who}: {name} must be one number, or one for each prompt, got none.")
    checked: PerPrompt = PromptValues(values) if is_sequence else numbers
    return checked


def set_per_prompt(processor: object, **requirements: Requirement) -> None:
    """Check parameters of a processor, and set each as `per_prompt` returns it."""
    for name, requirement in requirements.items():
        value = per_prompt(type(processor).__name__, name, getattr(processor, name), requirement)
        set_fields(processor, **{name: value})


def map_per_prompt(function: Callable[[Any], float], value: PerPrompt) -> PerPrompt:
    """Apply a function to the number, or to the number of every prompt."""
    return PromptValues(map(function, value)) if isinstance(value, PromptValues) else function(value)


def by_prompt(*values: PerPrompt) -> list[tuple[float, ...]]:
    """Return the numbers of several parameters, prompt by prompt; a single number is repeated."""
    columns = [value if isinstance(value, PromptValues) else (value,) for value in values]
    return list(islice(zip(*map(cycle, columns), strict=False), max(map(len, columns))))


def largest(value: PerPrompt) -> float:
    """Return the largest number of the parameter, without reading the device."""
    return max(value) if isinstance(value, PromptValues) else value  # type: ignore[return-value]


def for_rows(value: PerPrompt, history: History, like: Tensor) -> float | Shaped[Tensor, "rows 1"]:
    """Return the parameter as a number, or as a column with one number per row, typed and placed `like`."""
    if not isinstance(value, PromptValues):
        return value  # type: ignore[return-value]
    return history.to_rows(_on_device(value, like.dtype, like.device))[:, None]


@lru_cache(maxsize=256)
def _on_device(value: PromptValues, dtype: torch.dtype, device: torch.device) -> Num[Tensor, " batch"]:
    # Cached: a copy at every step would stall the device's stream.
    with torch.inference_mode(mode=False):  # the copy may later be used where gradients are computed
        return torch.tensor(value, dtype=dtype, device=device)
