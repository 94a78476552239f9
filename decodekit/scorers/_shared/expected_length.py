"""How long a text is expected to be."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.validation import is_positive, plain
from decodekit.errors import DecodekitError


def check_expected(who: object, ratio: object, length: object) -> float | tuple[float, ...] | None:
    """Raises unless one of them says how long; returns the length in a plain form."""
    name = type(who).__name__
    if (ratio is None) == (length is None):
        raise ValueError(
            f"{name}: either ratio or length must be given, got {ratio!r:.80} and {length!r:.80}."
        )
    length = plain(length)
    several = tuple(length) if isinstance(length, Sequence) and not isinstance(length, str) else None
    numbers = (ratio,) if length is None else (length,) if several is None else several
    if not numbers or not all(map(is_positive, numbers)):
        which = "ratio" if length is None else "length"
        raise ValueError(f"{name}: {which} must be above 0 and finite, got {numbers!r:.80}.")
    return length if several is None else several  # type: ignore[return-value]


def expected_length(
    who: object,
    ratio: float | None,
    length: float | Sequence[float] | None,
    history: History,
    limits: Limits,
) -> Float[Tensor, " rows"]:
    """The expected number of new tokens of every row."""
    rows, device = len(history.tokens), history.tokens.device
    if ratio is not None:
        read = history.valid[:, : limits.prompt_length]
        read = read if history.source is None else history.spread(history.source.valid)
        return ratio * read.sum(-1).float()
    if not isinstance(length, Sequence):
        return torch.full((rows,), float(length or 0), device=device)
    batch = rows // history.rows_per_prompt
    if len(length) != batch:
        raise DecodekitError(
            f"{type(who).__name__}: there must be one length a prompt, got {len(length)} for {batch} prompts."
        )
    return history.spread(torch.tensor(length, dtype=torch.float32, device=device))
