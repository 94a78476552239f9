"""Ancestral sampling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit import rng
from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.result import Decoded
from decodekit.decoders.base import Decoder, Selection
from decodekit.decoders.prompt_seeds import own_seeds, read_seeds
from decodekit.decoders.rows import RowState
from decodekit.errors import DecodekitError


class SampleState(NamedTuple):
    """Rows, and for every row the two numbers its draws are made from, if prompts have seeds."""

    rows: RowState
    seeds: Int64[Tensor, " rows"] | None
    streams: Int64[Tensor, " rows"] | None

    @property
    def history(self) -> History:
        """What every row has said."""
        return self.rows.history

    @property
    def done(self) -> Bool[Tensor, ""]:
        """Every row is finished, or one is stuck."""
        return self.rows.done


@final
@dataclass(frozen=True)
class Sample(Decoder[SampleState]):
    r"""Draws every token from the distribution the processors leave.

    $y_t \sim P(\cdot \mid y_{<t}, x)$. Randomness comes either from one generator for all rows, or
    from one seed a prompt; then a prompt's samples are the same whoever else is in the batch.

    Args:
        num_samples: Samples of each prompt, at least 1. The prompt is computed once.
        generator: The stream of all draws; None is torch's global one.
        seeds: One integer a prompt, instead of a generator.

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
        seeds = read_seeds("Sample", self.generator, self.seeds)
        object.__setattr__(self, "seeds", seeds)  # the way to set frozen fields
        object.__setattr__(self, "splits", seeds is not None)  # a stream of all rows belongs to no prompt

    @property
    def rows_per_prompt(self) -> int:
        """A row a sample."""
        return self.num_samples

    def init(self, history: History, limits: Limits) -> SampleState:
        """Nothing said yet."""
        rows = RowState.start(history, limits)
        device, batch = history.tokens.device, len(history.tokens) // self.num_samples
        if self.generator is not None and self.generator.device.type != device.type:
            raise DecodekitError(
                f"Sample: the generator must be on the model's device, got one on {self.generator.device} "
                f"for {device}. Make it with torch.Generator({device.type!r})."
            )
        if self.seeds is None:
            return SampleState(rows, None, None)
        seeds = own_seeds("Sample", None, self.seeds, history)
        return SampleState(
            rows,
            seeds=seeds.repeat_interleave(self.num_samples),
            streams=torch.arange(self.num_samples, device=device).repeat(batch),
        )

    def record_log_probs(self, scores: Float32[Tensor, "rows vocab"], state: SampleState) -> SampleState:
        """Keeps the logits, to report the drawn tokens' log-probabilities."""
        return state._replace(rows=state.rows._replace(model_scores=scores))

    def step(
        self, scores: Float32[Tensor, "rows vocab"], state: SampleState
    ) -> tuple[SampleState, Selection]:
        """One draw a row."""
        probs = scores.softmax(-1)
        if state.seeds is None or state.streams is None:
            tokens = rng.draw(probs, self.generator)
        else:
            tokens = rng.draw_seeded(probs, state.seeds, state.streams, state.rows.step)
        rows, selection = state.rows.emit(tokens, scores)
        return state._replace(rows=rows), selection

    def stable_prefix(self, state: SampleState) -> list[list[list[int]]]:
        """All that was said."""
        return state.rows.stable_prefix(hypotheses=self.num_samples)

    def finished(self, state: SampleState) -> Bool[Tensor, " batch"]:
        """Prompts whose rows are all finished."""
        return state.rows.finished

    def finalize(self, state: SampleState) -> Decoded:
        """`num_samples` hypotheses a prompt, in the order of their rows."""
        return state.rows.decoded(hypotheses=self.num_samples)
