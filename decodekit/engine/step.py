"""One step: from logits to the next tokens."""

from typing import Any, cast

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from decodekit.core.pytrees import Memory, reorder_memory
from decodekit.core.validation import shown
from decodekit.decoders.base import AdjustingDecoder, Decoder, Selection, State
from decodekit.errors import DecodekitError
from decodekit.processors.base import LogitsProcessor, apply_processor, nonfinite_rows

# State, selection, memory of every row in its new place, processed scores, and rows with non-finite scores.
StepResult = tuple[Any, Selection, Memory, Float32[Tensor, "rows vocab"], Bool[Tensor, " rows"]]


def decode_step(
    decoder: Decoder[State, Any],
    processor: LogitsProcessor,
    logits: Float32[Tensor, "rows vocab"],
    state: State,
    memory: Memory,
    nonfinite: Bool[Tensor, " rows"],
) -> tuple[State, Selection, Memory, Float32[Tensor, "rows vocab"], Bool[Tensor, " rows"]]:
    """One step of a decoder and its processors. Capturable parts do not read the device.

    The state holds the model's own scores while the decoder chooses, so that every decoder can report them.

    Args:
        decoder: The algorithm.
        processor: The processor, or a chain of several.
        logits: The logits of the model.
        state: State of the decoder.
        memory: Memory of the processor.
        nonfinite: True for rows that have had a score of NaN or plus infinity.

    Returns:
        The new state, the selection, the memory with every row in its new place, the scores after the
        processors, and the rows that have had a non-finite score.
    """
    scores = decoder.prepare(logits)
    state = cast("Any", state)._replace(model_scores=scores)
    if isinstance(decoder, AdjustingDecoder):
        scores = decoder.adjust(scores, state)
    scores, memory = apply_processor(processor, state.history, scores, memory)
    nonfinite = nonfinite | nonfinite_rows(scores)
    state, selection = _checked(decoder, decoder.step(scores, state), len(logits))
    if selection.source_rows is not None:
        memory = reorder_memory(memory, selection.source_rows)
    return state, selection, memory, scores, nonfinite


def _checked(decoder: Decoder[State, Any], result: object, rows: int) -> tuple[State, Selection]:
    """The new state and the selection. Raises if `Decoder.step` has returned anything else."""
    match result:
        case (state, Selection(tokens=Tensor() as tokens) as selection) if hasattr(state, "_replace"):
            if tokens.shape == (rows,) and tokens.dtype == torch.long:
                return state._replace(model_scores=None), selection
            found = f"a selection of {tokens.dtype} tokens of shape {tuple(tokens.shape)}"
        case tuple() if not hasattr(result, "_fields"):
            found = f"a tuple of {' and '.join(type(part).__name__ for part in result)}"
        case _:
            found = shown(result) if not isinstance(result, tuple) else f"a {type(result).__name__}"
    raise DecodekitError(
        f"decode: {type(decoder).__name__}.step must return its new state and a Selection of one int64 token "
        f"per row ({rows} rows), got {found}. In a RowDecoder only choose() is needed."
    )
