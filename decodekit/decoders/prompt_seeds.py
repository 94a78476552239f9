"""Seeds per prompt, given by the caller or drawn from a generator."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import plain, shown
from decodekit.errors import DecodekitError


def read_seeds(
    who: str, generator: torch.Generator | None, seeds: Sequence[int] | Tensor | None
) -> tuple[int, ...] | None:
    """The seeds as a tuple. Raises unless seeds and generator are valid, and one of them is None."""
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(  # noqa: TRY004 - as every argument out of range
            f"{who}: generator must be a torch.Generator, got {shown(generator)}."
        )
    if seeds is None:
        return None
    if generator is not None:
        raise ValueError(
            f"{who}: randomness must come from one source, got both generator and seeds. "
            "Pass seeds for draws that do not depend on the batch, a generator otherwise."
        )
    numbers = plain(seeds)
    if isinstance(numbers, str) or not isinstance(numbers, Sequence):
        raise ValueError(  # noqa: TRY004 - likewise
            f"{who}: seeds must be one integer per prompt, got {shown(seeds)}."
        )
    for seed in numbers:
        if type(seed) is not int or not -(2**63) <= seed < 2**63:
            raise ValueError(f"{who}: seeds must be 64-bit integers, got {seed!r}.")
    return tuple(numbers)


def prompt_seeds(
    who: str, generator: torch.Generator | None, seeds: tuple[int, ...] | None, batch: int
) -> Int64[Tensor, " batch"]:
    """The given seeds, or as many drawn from the generator; on the host, or on the generator's device.

    Args:
        who: The decoder, for the error.
        generator: The source of seeds if none are given; None is torch's global one.
        seeds: One per prompt, or None.
        batch: Number of prompts.

    Raises:
        DecodekitError: If there are not as many seeds as prompts.
    """
    if seeds is None:
        device = torch.device("cpu") if generator is None else generator.device
        return torch.empty(batch, dtype=torch.long, device=device).random_(generator=generator)
    if len(seeds) != batch:
        raise DecodekitError(
            f"{who}: there must be one seed per prompt, got {len(seeds)} seeds for {batch} prompts."
        )
    return torch.tensor(seeds, dtype=torch.long, device="cpu")


def own_seeds(
    who: str, generator: torch.Generator | None, seeds: Sequence[int] | Tensor | None, history: History
) -> Int64[Tensor, " batch"]:
    """The seeds of the prompts that a history covers, on its device; `seeds` are those of the whole run.

    Raises:
        DecodekitError: If there are not as many seeds as prompts.
    """
    given = None if seeds is None else tuple(int(seed) for seed in seeds)
    every = prompt_seeds(who, generator, given, history.batch)
    return history.to_prompts(every.to(history.tokens.device))
