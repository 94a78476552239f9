"""The source of every prompt: ids that processors compare the output with."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from decodekit.core.history import History, Source
from decodekit.core.validation import read_ids, shown
from decodekit.errors import DecodekitError

# A source as the caller gives it: ids for all prompts, or ids per prompt; None: the run's own.
SourceIds = Iterable[int] | Iterable[Iterable[int]] | Tensor | None


def read_source(who: str, given: Any) -> tuple[tuple[int, ...], ...] | None:  # noqa: ANN401 - checked here
    """Return ids for all prompts as one tuple, ids per prompt as several, and None as it is.

    Raises:
        ValueError: If they are not ids, or there are none.
    """
    if given is None:
        return None
    plain = given.tolist() if isinstance(given, Tensor) else given
    values = list(plain) if isinstance(plain, Iterable) and not isinstance(plain, str) else []
    if not values:
        raise ValueError(f"{who}: source must be ids, ids for each prompt or None, got {shown(given)}.")
    is_nested = isinstance(values[0], Iterable) and not isinstance(values[0], str)
    return tuple(read_ids(who, ids) for ids in values) if is_nested else (read_ids(who, values),)


def check_source(who: str, source: tuple[tuple[int, ...], ...] | None, history: History) -> None:
    """Raise unless there is one source for all prompts, or one per prompt."""
    batch = history.batch
    if source is not None and len(source) not in {1, batch}:
        raise DecodekitError(
            f"{who}: source must be one for all prompts, or one for each, got {len(source)} for {batch} "
            "prompts."
        )


def source_of(
    source: tuple[tuple[int, ...], ...] | None, history: History, prompt_length: Int64[Tensor, ""]
) -> tuple[Int64[Tensor, "rows source"], Bool[Tensor, "rows source"]]:
    """Return the source of every row, and False at its padding.

    The source is the given one, else the encoder's input, else the prompt, of `prompt_length` columns.
    """
    given = history.source if source is None else _on_device(source, history.tokens.device)
    if given is None:
        columns = torch.arange(history.tokens.shape[1], device=history.tokens.device)
        return history.tokens, history.valid & (columns < prompt_length)
    if len(given.tokens) == 1:
        rows = len(history.tokens)
        return given.tokens.expand(rows, -1), given.valid.expand(rows, -1)
    return history.to_rows(given.tokens), history.to_rows(given.valid)


@lru_cache(maxsize=64)
def _on_device(source: tuple[tuple[int, ...], ...], device: torch.device) -> Source:
    # Cached: a copy at every step would stall the device's stream.
    return Source.from_ids(source).to(device)
