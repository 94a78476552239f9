"""A second model that reads along: what guidance, fusion and ensembles of models share.

The session of a model is the one mutable thing in the library. Here it stands in a processor's memory
beside a column that says which of its rows each row continues. When beams are reordered the loop moves
that column, as it moves all memory, and the next step hands it to the session: so the second model's
cache follows its beams.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.errors import DecodekitError
from decodekit.history import History
from decodekit.model import Model, Session
from decodekit.prompt import Prompt


class Reading(NamedTuple):
    """How far a second model has read, on every row.

    Attributes:
        session: Its run; shared by all memories of this run of the processor.
        rows: The session's row that each row continues.
        logits: After the prompt, before anything was said; None from then on.
    """

    session: Session
    rows: Int64[Tensor, " rows"]
    logits: Float32[Tensor, "rows vocab"] | None


def start_reading(who: str, model: Model, history: History, prompt: Prompt | None = None) -> Reading:
    """Starts the second model on the run's own prompts, or on others.

    Args:
        who: The processor, for the error.
        model: The second model.
        history: The run's, before the first step.
        prompt: What the model reads instead of the run's prompts, one for each.
    """
    rows, capacity = history.tokens.shape
    batch, length = rows // history.rows_per_prompt, int(history.position)
    if prompt is None:
        # The rows of a prompt are alike before the first step.
        own = slice(None, None, history.rows_per_prompt)
        prompt = Prompt(history.tokens[own, :length], history.valid[own, :length], history.source)
    if len(prompt.tokens) != batch:
        raise DecodekitError(
            f"{who}: there must be one prompt for the second model for each prompt of the run, got "
            f"{len(prompt.tokens)} for {batch}."
        )
    session, logits = model.start(
        prompt,
        rows_per_prompt=history.rows_per_prompt,
        capacity=prompt.tokens.shape[1] + capacity - length,
    )
    return Reading(session, torch.arange(rows, device=logits.device), logits)


def read_on(
    who: str, reading: Reading, history: History, like: Float32[Tensor, "rows vocab"]
) -> tuple[Float32[Tensor, "rows vocab"], Reading]:
    """The second model's logits for the next token, and how far it has read then.

    Args:
        who: The processor, for the error.
        reading: How far the model has read: everything but the newest token.
        history: What was said.
        like: The run's own scores, whose vocabulary and device the logits must have.
    """
    logits = reading.logits
    if logits is None:
        moved = reading.rows if history.rows_per_prompt > 1 else None  # a single row continues itself
        tokens = history.last().to(reading.rows.device)
        logits = reading.session.advance(tokens, moved)
    if logits.shape != like.shape:
        raise DecodekitError(
            f"{who}: both models must have the same vocabulary, got {logits.shape[-1]} tokens for "
            f"{like.shape[-1]}."
        )
    rows = torch.arange(len(logits), device=logits.device)
    return logits.to(like.device), Reading(reading.session, rows, None)
