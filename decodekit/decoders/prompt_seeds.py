"""Random streams of decoders: a generator, or one seed per prompt."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import plain, set_fields, shown
from decodekit.errors import DecodekitError


@runtime_checkable
class Seeded(Protocol):
    """A decoder that draws from a generator or from one seed per prompt; without both, from torch's."""

    @property
    def generator(self) -> torch.Generator | None:
        """The stream of all draws, or of the seeds."""

    @property
    def seeds(self) -> Sequence[int] | Tensor | None:
        """One integer per prompt of the whole call."""


def check_generator(who: str, generator: object) -> None:
    """Raise a `ValueError` unless the argument is a `torch.Generator` or None."""
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(  # noqa: TRY004 - as every argument out of range
            f"{who}: generator must be a torch.Generator, got {shown(generator)}."
        )


def read_seeds(decoder: Seeded) -> None:
    """Keep the seeds as a tuple. Raises unless seeds and generator are valid, and one of them is None."""
    who, seeds = type(decoder).__name__, decoder.seeds
    check_generator(who, decoder.generator)
    if seeds is None:
        return
    if decoder.generator is not None:
        raise ValueError(
            f"{who}: randomness must come from one source, got both generator and seeds. "
            "Pass seeds for draws that do not depend on the batch, a generator otherwise."
        )
    numbers = plain(seeds)
    if isinstance(numbers, str) or not isinstance(numbers, Sequence):
        raise ValueError(  # noqa: TRY004 - as every argument out of range
            f"{who}: seeds must be one integer per prompt, got {shown(seeds)}."
        )
    for seed in numbers:
        if type(seed) is not int or not -(2**63) <= seed < 2**63:
            raise ValueError(f"{who}: seeds must be 64-bit integers, got {seed!r}.")
    set_fields(decoder, seeds=tuple(numbers))


def check_generator_device(decoder: Seeded, device: torch.device) -> None:
    """Raise a `DecodekitError` if the decoder draws from a generator on another device."""
    generator = decoder.generator
    if generator is not None and generator.device.type != device.type:
        raise DecodekitError(
            f"{type(decoder).__name__}: the generator must be on the model's device, got one on "
            f"{generator.device} for {device}. Make it with torch.Generator({device.type!r})."
        )


def prompt_seeds(decoder: Seeded, batch: int) -> Int64[Tensor, " batch"]:
    """The decoder's seeds, or as many drawn from its generator; on the host, or the generator's device."""
    if decoder.seeds is None:
        device = torch.device("cpu") if decoder.generator is None else decoder.generator.device
        return torch.empty(batch, dtype=torch.long, device=device).random_(generator=decoder.generator)
    if len(decoder.seeds) != batch:
        raise DecodekitError(
            f"{type(decoder).__name__}: there must be one seed per prompt, got {len(decoder.seeds)} seeds "
            f"for {batch} prompts."
        )
    return torch.tensor(decoder.seeds, dtype=torch.long, device="cpu")


def own_seeds(decoder: Seeded, history: History) -> Int64[Tensor, " batch"]:
    """The seeds of the prompts that a history covers, on its device."""
    return history.to_prompts(prompt_seeds(decoder, history.batch).to(history.tokens.device))
