"""Processors at work: what they return must be scores."""

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
    """What a processor makes of scores, and remembers.

    Raises:
        DecodekitError: If it returns something else than scores of the same shape.
    """
    processed, after = processor.apply(history, scores, memory)
    if not isinstance(processed, Tensor) or processed.shape != scores.shape:
        raise DecodekitError(
            f"decode: processors must return scores of the shape they were given, {tuple(scores.shape)}, and "
            f"{processor!r:.200} returned "
            f"{tuple(processed.shape) if isinstance(processed, Tensor) else processed!r}."
        )
    return processed, after


def not_numbers(prompt: int) -> DecodingError:
    """The error for scores of a prompt that are not numbers below infinity."""
    return DecodingError(
        f"decode: scores must be numbers below infinity, and for prompt {prompt} some were NaN or infinite. "
        "A processor made them, or the model: half precision overflows, and eager attention cannot mask "
        "padding in float64; try float32."
    )


def nonfinite_rows(scores: Float32[Tensor, "rows vocab"]) -> Bool[Tensor, " rows"]:
    """The rows on which some score is not a number, or infinite."""
    return ~(scores.amax(-1) < torch.inf)
