"""Application of processors, and checks of what they return."""

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.pytrees import Memory
from decodekit.errors import DecodekitError, DecodingError
from decodekit.processors.base import LogitsProcessor


def apply_processor(
    processor: LogitsProcessor, history: History, scores: Float32[Tensor, "rows vocab"], memory: Memory
) -> tuple[Float32[Tensor, "rows vocab"], Memory]:
    """Return a processor's scores and memory.

    Raises:
        DecodekitError: If it does not return scores of the same shape.
    """
    processed, memory = processor.apply(history, scores, memory)
    if not isinstance(processed, Tensor) or processed.shape != scores.shape:
        returned = tuple(processed.shape) if isinstance(processed, Tensor) else processed
        raise DecodekitError(
            f"decode: processors must return scores of the shape they were given, {tuple(scores.shape)}, and "
            f"{processor!r:.200} returned {returned!r}."
        )
    return processed, memory


def nonfinite_error(prompt: int) -> DecodingError:
    """Return the error for a prompt some of whose scores are NaN or plus infinity."""
    return DecodingError(
        f"decode: scores must be numbers below infinity, and for prompt {prompt} some were NaN or infinite. "
        "A processor made them, or the model: half precision overflows, and eager attention cannot mask "
        "padding in float64; try float32."
    )


def nonfinite_rows(scores: Float32[Tensor, "rows vocab"]) -> Bool[Tensor, " rows"]:
    """Return True for every row in which some score is NaN or plus infinity."""
    return ~(scores.amax(-1) < torch.inf)
