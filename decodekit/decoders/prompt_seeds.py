"""One seed a prompt, whoever gives them: then all that follows is a function of seeds."""

import torch
from jaxtyping import Int64
from torch import Tensor

from decodekit.errors import DecodekitError


def prompt_seeds(
    who: str, generator: torch.Generator | None, seeds: tuple[int, ...] | None, batch: int
) -> Int64[Tensor, " batch"]:
    """The seeds that were given, or as many drawn from the generator; on the host, or where it is.

    Args:
        who: The decoder, for the error.
        generator: Where seeds come from if there are none; None is torch's global one.
        seeds: One a prompt, or None.
        batch: How many prompts there are.

    Raises:
        DecodekitError: If there are not as many seeds as prompts.
    """
    if seeds is None:
        device = torch.device("cpu") if generator is None else generator.device
        return torch.empty(batch, dtype=torch.long, device=device).random_(generator=generator)
    if len(seeds) != batch:
        raise DecodekitError(
            f"{who}: there must be one seed a prompt, got {len(seeds)} seeds for {batch} prompts."
        )
    return torch.tensor(seeds, dtype=torch.long, device="cpu")
