"""Ancestral sampling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from typing_extensions import override

from decodekit import rng
from decodekit.core.history import History
from decodekit.core.validation import set_fields
from decodekit.decoders.prompt_seeds import check_generator_device, own_seeds, read_seeds
from decodekit.decoders.rows import RowDecoder, RowState


@final
@dataclass(frozen=True)
class Sample(RowDecoder):
    r"""Draws every token from the distribution that the processors leave.

    $y_t \sim P(\cdot \mid y_{<t}, x)$. Randomness comes either from one generator for all rows, or from one
    seed per prompt; with seeds, the samples of a prompt do not depend on the rest of the batch.

    Args:
        num_samples: Samples of each prompt, at least 1. The prompt is computed once.
        generator: The stream of all draws; None is torch's global one.
        seeds: One integer per prompt, instead of a generator.

    Raises:
        ValueError: If `num_samples` is not an integer of at least 1, if both `generator` and `seeds`
            are given, or if a seed does not fit 64 bits.
        DecodekitError: In a run, if there are not as many seeds as prompts, or the generator is on another
            device than the model.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon a", dk.Sample(2, seeds=[7]), dk.TopP(0.9),
        ...                 max_new_tokens=8)
        >>> out.tokens.shape
        torch.Size([1, 2, 8])

    Hugging Face:
        `generate(do_sample=True, top_k=0, num_return_sequences=num_samples)`. With a generator (or
        after the same `torch.manual_seed`) the same tokens; Hugging Face has no seeds per prompt.
    """

    num_samples: int = 1
    generator: torch.Generator | None = None
    seeds: Sequence[int] | Int64[Tensor, " batch"] | None = None

    def __post_init__(self) -> None:
        if type(self.num_samples) is not int or self.num_samples < 1:
            raise ValueError(
                f"Sample: num_samples must be an integer of at least 1, got {self.num_samples!r}."
            )
        read_seeds(self)
        # A generator's stream is shared by all rows.
        set_fields(self, batch_independent=self.seeds is not None)

    @property
    @override
    def rows_per_prompt(self) -> int:
        return self.num_samples

    @override
    def start(self, history: History) -> tuple[Int64[Tensor, " rows"], Int64[Tensor, " rows"]] | tuple[()]:
        """The two numbers per row that draws are made from: its prompt's seed and its own stream."""
        check_generator_device(self, history.tokens.device)
        if self.seeds is None:
            return ()
        return own_seeds(self, history).repeat_interleave(self.num_samples), history.owners.slots

    @override
    def choose(self, scores: Float32[Tensor, "rows vocab"], state: RowState) -> Int64[Tensor, " rows"]:
        probs = scores.softmax(-1)
        if not state.memory:
            return rng.draw(probs, self.generator)
        seeds, streams = state.memory
        return rng.draw_seeded(probs, seeds, streams, state.step)
