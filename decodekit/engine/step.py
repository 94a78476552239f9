"""One step: from logits to the next tokens."""

from typing import Any

from jaxtyping import Bool, Float32
from torch import Tensor

from decodekit.core.pytrees import Memory, reorder_memory
from decodekit.decoders.base import Decoder, Selection, State
from decodekit.processors.base import LogitsProcessor, apply_processor, nonfinite_rows

# State, selection, every row's memory in its new place, processed scores, and the broken rows.
Step = tuple[Any, Selection, Memory, Float32[Tensor, "rows vocab"], Bool[Tensor, " rows"]]


def step(
    decoder: Decoder[State],
    chain: LogitsProcessor,
    logits: Float32[Tensor, "rows vocab"],
    state: State,
    memory: Memory,
    nonfinite: Bool[Tensor, " rows"],
) -> tuple[State, Selection, Memory, Float32[Tensor, "rows vocab"], Bool[Tensor, " rows"]]:
    """One step, from logits to the next tokens; nothing in it reads the device.

    Returns:
        The state, the selection, every row's memory in its new place, the processed scores, and the
        rows on which some score so far was not a number (or infinite).
    """
    prepared = decoder.prepare(logits)
    state = decoder.record_log_probs(prepared, state)
    prepared = decoder.adjust(prepared, state)
    scores, memory = apply_processor(chain, state.history, prepared, memory)
    nonfinite = nonfinite | nonfinite_rows(scores)
    state, selection = decoder.step(scores, state)
    if selection.source_rows is not None:
        memory = reorder_memory(memory, selection.source_rows)
    return state, selection, memory, scores, nonfinite
