"""The contract of algorithms that run their own loop."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Generic

from decodekit.core.request import DecodeRequest
from decodekit.core.result import Decoded, Report
from decodekit.core.validation import CheckedOptions
from decodekit.models.protocols import Model
from decodekit.processors.base import LogitsProcessor


class CustomLoop(CheckedOptions, ABC, Generic[Report]):
    """An algorithm whose rows gain different numbers of tokens, or that visits hypotheses in any order.

    `decode` takes it in place of a `Decoder`. It uses the same parts (sessions, processors, limits) and obeys
    the same laws: each prompt gets the result it would get on its own, unless draws share a generator;
    log-probabilities are the model's own; memory follows its hypothesis; stopping criteria apply.

    Example:
        >>> issubclass(CustomLoop, dk.Decoder)
        False
    """

    @abstractmethod
    def run(
        self, model: Model, processor: LogitsProcessor, request: DecodeRequest
    ) -> Generator[None, None, Decoded[Report]]:
        """Continue the prompts; yield after every pass through the model, return the result.

        Args:
            model: The model.
            processor: The processor, or a chain of several.
            request: Prompts and options. `Limits.of(request, vocab)` gives the limits of hypotheses.
        """
