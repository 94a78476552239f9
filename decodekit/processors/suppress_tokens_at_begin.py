"""Tokens that do not begin a continuation."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import is_count, read_ids
from decodekit.processors.base import LogitsProcessor, ban


@final
@dataclass(frozen=True)
class SuppressTokensAtBegin(LogitsProcessor):
    """Bans a fixed set of tokens at the first new token, and at no other.

    Args:
        tokens: Their ids, one or several, below the vocabulary size.
        begin: How many new tokens come before; 1 where the first one is forced, as by `ForcedBOS`.

    Raises:
        ValueError: If an id or `begin` is not an integer of at least 0; when applied, if an id is
            outside the vocabulary.

    Example:
        >>> model = dk.testing.MarkovModel([[0.6, 0.4], [0.6, 0.4]])
        >>> banned = SuppressTokensAtBegin(0)
        >>> dk.decode(model, [1], dk.Greedy(), banned, max_new_tokens=3).hypotheses()
        [[[1, 0, 0]]]

    Source:
        Radford et al., 2022, https://arxiv.org/abs/2212.04356: Whisper begins with neither a blank nor
        its end.

    Hugging Face:
        `SuppressTokensAtBeginLogitsProcessor(tokens, begin_index)`, bit for bit, where `begin_index` is
        the prompt's length in columns plus `begin`; ours remembers where the prompt ends by itself.
        Theirs ignores ids outside the vocabulary.
    """

    tokens: int | Iterable[int]
    begin: int = 0

    batch_independent = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", read_ids("SuppressTokensAtBegin", self.tokens))  # a frozen field
        if not is_count(self.begin, 0):
            raise ValueError(
                f"SuppressTokensAtBegin: begin must be an integer of at least 0, got {self.begin!r}."
            )

    def init(self, history: History) -> Int64[Tensor, ""]:
        """The prompt's length in columns."""
        return history.position.clone()

    def apply(
        self,
        history: History,
        scores: Float32[Tensor, "rows vocab"],
        memory: Int64[Tensor, ""],
    ) -> tuple[Float32[Tensor, "rows vocab"], Int64[Tensor, ""]]:
        """The scores, at the beginning without the suppressed tokens."""
        ids = read_ids("SuppressTokensAtBegin", self.tokens)
        begins = history.position - memory == self.begin
        return ban("SuppressTokensAtBegin", scores, ids, begins), memory
