"""Random numbers for rows of different lengths."""

from enum import IntEnum

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from decodekit import rng

_STEPS = 2**32  # more than any hypothesis has tokens
_PURPOSES = 4


class Purpose(IntEnum):
    """The use of a random number: numbers for different purposes are independent."""

    DRAFT = 0
    ACCEPT = 1
    TARGET = 2


class Draws:
    """Random numbers from a generator, or from one seed per row; the latter depend on nothing else.

    `samples` are the indices of the rows among the samples of their prompts.
    """

    def __init__(
        self, generator: torch.Generator | None, seeds: Int64[Tensor, " rows"] | None, samples: list[int]
    ) -> None:
        self._generator, self._seeds, self._samples = generator, seeds, samples

    def tokens(
        self, probs: Float[Tensor, "some vocab"], rows: list[int], steps: list[int], purpose: Purpose
    ) -> Int64[Tensor, " some"]:
        """Draw a token for each of some rows with `steps` new tokens; `probs` need not be normalized."""
        if self._seeds is None:
            return rng.draw(probs, self._generator)
        seeds, streams = self._streams(self._seeds, rows, steps, purpose)
        return rng.draw_seeded(probs, seeds, streams, torch.zeros_like(seeds[0]))

    def uniform(
        self, like: Float[Tensor, "..."], row: int, step: int, purpose: Purpose
    ) -> Float[Tensor, " 1"]:
        """Draw a number in [0, 1) for a row, on the device of `like`."""
        if self._seeds is None:
            return torch.rand(1, dtype=torch.float64, device=like.device, generator=self._generator)
        seeds, streams = self._streams(self._seeds, [row], [step], purpose)
        return rng.uniform(seeds, streams, torch.zeros_like(seeds[0]))

    def _streams(
        self, seeds: Int64[Tensor, " rows"], rows: list[int], steps: list[int], purpose: Purpose
    ) -> tuple[Int64[Tensor, " some"], Int64[Tensor, " some"]]:
        """The seeds of some rows, and a stream for each sample, step and purpose."""
        streams = [
            (self._samples[row] * _STEPS + step) * _PURPOSES + purpose
            for row, step in zip(rows, steps, strict=True)
        ]
        return seeds[rows], torch.tensor(streams, device=seeds.device)
