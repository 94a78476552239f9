"""The random numbers of rows that are at different lengths, each drawn for a purpose."""

from enum import IntEnum

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from decodekit import rng

_STEPS = 2**32  # more than any text has tokens
_PURPOSES = 4


class Purpose(IntEnum):
    """What is drawn for the same place of a text: numbers for one say nothing about those for another."""

    DRAFT = 0
    ACCEPT = 1
    OWN = 2


class Draws:
    """Random numbers from one generator, or from a seed a row; then they depend on nothing else.

    Args:
        generator: The stream; None is torch's global one.
        seeds: One a row, or None.
        samples: Which of its prompt's samples each row is.
    """

    def __init__(
        self, generator: torch.Generator | None, seeds: Int64[Tensor, " rows"] | None, samples: list[int]
    ) -> None:
        self._generator = generator
        self._seeds = seeds
        self._samples = samples

    def tokens(
        self, probs: Float[Tensor, "some vocab"], rows: list[int], steps: list[int], purpose: Purpose
    ) -> Int64[Tensor, " some"]:
        """A token for each of some rows.

        Args:
            probs: Their distributions, which need not sum to 1.
            rows: Which rows they are.
            steps: How many new tokens are before the one that is drawn.
            purpose: What it is drawn for.
        """
        if self._seeds is None:
            return rng.draw(probs, self._generator)
        seeds, streams = self._numbers(self._seeds, rows, steps, purpose)
        return rng.draw_seeded(probs, seeds, streams, torch.zeros_like(seeds[0]))

    def uniform(
        self, like: Float[Tensor, "..."], row: int, step: int, purpose: Purpose
    ) -> Float[Tensor, " 1"]:
        """A number in [0, 1) for a row, where another tensor is."""
        if self._seeds is None:
            return torch.rand(1, dtype=torch.float64, device=like.device, generator=self._generator)
        seeds, streams = self._numbers(self._seeds, [row], [step], purpose)
        return rng.uniform(seeds, streams, torch.zeros_like(seeds[0]))

    def _numbers(
        self, seeds: Int64[Tensor, " rows"], rows: list[int], steps: list[int], purpose: Purpose
    ) -> tuple[Int64[Tensor, " some"], Int64[Tensor, " some"]]:
        """The seeds of some rows, and a number for each sample, step and purpose."""
        streams = [
            (self._samples[row] * _STEPS + step) * _PURPOSES + purpose
            for row, step in zip(rows, steps, strict=True)
        ]
        return seeds[rows], torch.tensor(streams, device=seeds.device)
