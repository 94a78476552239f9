"""What hypotheses are to whoever judges them: texts, or lists of token ids."""

from typing import Any

from torch import nn

from decodekit.core.result import Decoded
from decodekit.core.validation import is_count
from decodekit.errors import DecodekitError
from decodekit.models.protocols import Model


def check_decoded(who: str, name: str, out: object) -> None:
    """Raises unless an argument is what `decode` returns."""
    if not isinstance(out, Decoded):
        raise TypeError(f"{who}: {name} must be what decode returns, got {out!r:.80}.")


def read_hypotheses(who: str, out: Decoded, *, ids: bool | None) -> list[list[Any]]:
    """Every prompt's valid hypotheses.

    Args:
        who: For messages.
        out: The result.
        ids: True: lists of ids; False: texts; None: texts if there are any.

    Raises:
        DecodekitError: If there are no texts and texts are wanted.
    """
    if ids or (ids is None and out.texts is None):
        return out.hypotheses()
    if out.texts is None:
        raise DecodekitError(
            f"{who}: texts need a tokenizer, and the model had none. Use HFModel(model, tokenizer), or "
            "something that reads ids."
        )
    return [list(texts) for texts in out.texts]


def read_reasons(out: Decoded) -> list[list[str]]:
    """What finished every prompt's valid hypotheses."""
    rows = zip(out.finish_reason, out.valid.tolist(), strict=True)
    return [[reason for reason, is_valid in zip(*row, strict=True) if is_valid] for row in rows]


def check_is_model(who: str, model: object) -> None:
    """Raises unless an argument is a model."""
    if not isinstance(model, Model | nn.Module) or isinstance(model, type):
        raise TypeError(f"{who}: model must be a Model or a transformers model, got {model!r:.80}.")


def check_batch_size(who: str, batch_size: object) -> None:
    """Raises unless an argument is a number of hypotheses, or None."""
    if batch_size is not None and not is_count(batch_size, 1):
        raise ValueError(f"{who}: batch_size must be an integer of at least 1, got {batch_size!r}.")
