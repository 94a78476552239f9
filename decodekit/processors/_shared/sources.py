"""The source of every prompt: ids that processors compare the output with."""

from abc import abstractmethod
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History, Source
from decodekit.core.validation import read_ids, shown
from decodekit.errors import DecodekitError
from decodekit.processors.base import Column, NewTokenProcessor, Scores

# A source of the caller: ids for all prompts, or ids per prompt; None: the source of the run.
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


class SourceProcessor(NewTokenProcessor):
    """A processor that compares the output with a source: given ids, the encoder's input, or the prompt."""

    source: SourceIds

    @abstractmethod
    def compare(self, history: History, scores: Scores, source: Source) -> Scores:
        """Return the new scores, given the source of every row."""

    @final
    @override
    def init(self, history: History) -> Column:
        source: tuple[tuple[int, ...], ...] | None = self.source  # type: ignore[assignment]
        if source is not None and len(source) not in {1, history.batch}:
            raise DecodekitError(
                f"{type(self).__name__}: source must be one for all prompts, or one for each, got "
                f"{len(source)} for {history.batch} prompts."
            )
        return super().init(history)

    @final
    @override
    def process(self, history: History, scores: Scores, first_new: Column) -> Scores:
        device = history.tokens.device
        given = history.source if self.source is None else _on_device(self.source, device)  # type: ignore[arg-type]
        if given is None:
            columns = torch.arange(history.tokens.shape[1], device=device)
            source = Source(history.tokens, history.valid & (columns < first_new))
        elif len(given.tokens) == 1:
            source = Source(*(tensor.expand(len(scores), -1) for tensor in given))
        else:
            source = Source(*map(history.to_rows, given))
        return self.compare(history, scores, source)


@lru_cache(maxsize=64)
def _on_device(source: tuple[tuple[int, ...], ...], device: torch.device) -> Source:
    # Cached: a copy at every step would stall the device's stream.
    return Source.from_ids(source).to(device)
