"""What a text is about: the ids that processors compare it with."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from decodekit.core.history import History, Source
from decodekit.core.validation import read_ids
from decodekit.errors import DecodekitError

# What a person gives: ids for all prompts, or such ids for each; None: the run's own.
SourceIds = Iterable[int] | Iterable[Iterable[int]] | Tensor | None


def read_source(who: str, given: Any) -> tuple[tuple[int, ...], ...] | None:  # noqa: ANN401 - it may be anything
    """Ids for all prompts as one tuple, ids for each as several; None as it is.

    Raises:
        ValueError: If they are not ids, or there are none.
    """
    if given is None:
        return None
    plain = given.tolist() if isinstance(given, Tensor) else given
    several = list(plain) if isinstance(plain, Iterable) and not isinstance(plain, str) else []
    if not several:
        raise ValueError(f"{who}: source must be ids, ids for each prompt or None, got {given!r:.80}.")
    for_each = isinstance(several[0], Iterable) and not isinstance(several[0], str)
    return tuple(read_ids(who, ids) for ids in several) if for_each else (read_ids(who, several),)


def check_source(who: str, source: tuple[tuple[int, ...], ...] | None, history: History) -> None:
    """Raises unless there is one source for all prompts, or one for each."""
    batch = history.batch
    if source is not None and len(source) not in {1, batch}:
        raise DecodekitError(
            f"{who}: source must be one for all prompts, or one for each, got {len(source)} for {batch} "
            "prompts."
        )


def source_of(
    source: tuple[tuple[int, ...], ...] | None, history: History, prompt_length: Int64[Tensor, ""]
) -> tuple[Int64[Tensor, "rows source"], Bool[Tensor, "rows source"]]:
    """Every row's source: what was given, else what the encoder has read, else the prompt.

    Args:
        source: As `read_source` gives it.
        history: Says what the encoder has read, and which prompt each row continues.
        prompt_length: The prompt's length in columns.

    Returns:
        Tokens, and which of them count.
    """
    own = history.source if source is None else _on_device(source, history.tokens.device)
    if own is None:
        columns = torch.arange(history.tokens.shape[1], device=history.tokens.device)
        return history.tokens, history.valid & (columns < prompt_length)
    if len(own.tokens) == 1:
        rows = len(history.tokens)
        return own.tokens.expand(rows, -1), own.valid.expand(rows, -1)
    return history.spread(own.tokens), history.spread(own.valid)


@lru_cache(maxsize=64)
def _on_device(source: tuple[tuple[int, ...], ...], device: torch.device) -> Source:
    # Made once: a copy a step would stall the device's stream.
    longest = max(map(len, source))
    tokens = [[*ids, *[0] * (longest - len(ids))] for ids in source]
    valid = [[column < len(ids) for column in range(longest)] for ids in source]
    return Source(
        torch.tensor(tokens, dtype=torch.long, device=device),
        torch.tensor(valid, dtype=torch.bool, device=device),
    )
