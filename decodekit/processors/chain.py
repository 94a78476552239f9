"""Processors one after the other."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.pytrees import Memory
from decodekit.processors.base import LogitsProcessor


@final
@dataclass(frozen=True, init=False, repr=False)
class Chain(LogitsProcessor):
    """Applies processors from left to right; itself a processor, so chains nest.

    `Chain()` changes nothing, and how a chain is nested does not matter.

    Args:
        processors: In the order in which they see the scores.

    Raises:
        TypeError: If one of them is not a `LogitsProcessor`.

    Example:
        >>> Chain(dk.Temperature(0.7), dk.TopP(0.9))
        Chain(Temperature(temperature=0.7), TopP(p=0.9, min_tokens_to_keep=1))
        >>> dk.Temperature(0.7) | dk.TopP(0.9)
        Chain(Temperature(temperature=0.7), TopP(p=0.9, min_tokens_to_keep=1))

    Hugging Face:
        `LogitsProcessorList`, which carries no memory along with reordered beams.
    """

    processors: tuple[LogitsProcessor, ...]

    batch_independent = True

    def __init__(self, *processors: LogitsProcessor) -> None:
        for processor in processors:
            if not isinstance(processor, LogitsProcessor):
                raise TypeError(
                    f"Chain: every processor must be a decodekit.LogitsProcessor, got {processor!r:.80}."
                )
        object.__setattr__(self, "processors", processors)  # a frozen field
        object.__setattr__(self, "capturable", all(p.capturable for p in processors))
        object.__setattr__(self, "argmax_invariant", all(p.argmax_invariant for p in processors))

    def init(self, history: History) -> Memory:
        """Every processor's memory, in order."""
        return tuple(processor.init(history) for processor in self.processors)

    def apply(
        self, history: History, scores: Float32[Tensor, "rows vocab"], memory: Memory
    ) -> tuple[Float32[Tensor, "rows vocab"], Memory]:
        """Every processor in order, each with its own memory."""
        after = []
        for processor, own in zip(self.processors, memory, strict=True):
            scores, own_after = processor.apply(history, scores, own)
            after.append(own_after)
        return scores, tuple(after)

    def __call__(
        self, input_ids: Int64[Tensor, "rows length"], scores: Float32[Tensor, "rows vocab"]
    ) -> Float32[Tensor, "rows vocab"]:
        """Hugging Face's calling convention, for a chain of processors that remember nothing."""
        for processor in self.processors:
            scores = processor(input_ids, scores)
        return scores

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.processors))})"
