"""What hypotheses are to whoever judges them: texts, or lists of token ids."""

from typing import Any

from decodekit.errors import DecodekitError
from decodekit.output import Decoded


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
