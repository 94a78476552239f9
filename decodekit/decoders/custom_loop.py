"""Algorithms that do not advance all rows by one token at a time."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass

from decodekit.core.limits import Limits
from decodekit.core.prompt import Prompt
from decodekit.core.request import Options
from decodekit.core.result import Decoded
from decodekit.core.vocabulary import Vocabulary
from decodekit.models.protocols import Model
from decodekit.processors.base import LogitsProcessor


@dataclass(frozen=True)
class DecodeRequest:
    """What `decode` was asked to do.

    Attributes:
        model: The model.
        prompt: The prompts, left-padded.
        processor: What changes the scores.
        options: Where hypotheses end.
        vocabulary: What the model's ids mean.
    """

    model: Model
    prompt: Prompt
    processor: LogitsProcessor
    options: Options
    vocabulary: Vocabulary

    def limits(self, vocab: int) -> Limits:
        """Where hypotheses end.

        Args:
            vocab: Tokens the model can say: the width of its logits.
        """
        return self.options.limits(self.vocabulary, self.prompt.tokens.shape[1], vocab)


class CustomLoop(ABC):
    """An algorithm with a loop of its own: its rows gain different numbers of tokens, or jump in the tree.

    `decode` takes it where it takes a `Decoder`. It is made of the same parts (sessions, processors, limits)
    and keeps the same laws: a batch gives what each prompt alone gives, log-probabilities are the model's
    own, every processor's memory follows its hypothesis, and stopping criteria are asked.

    Example:
        >>> issubclass(CustomLoop, dk.Decoder)
        False
    """

    @abstractmethod
    def run(self, request: DecodeRequest) -> Generator[None, None, Decoded]:
        """Continues the prompts; yields after every pass through the model, returns the result."""
