"""The contract of models."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.prompt import Prompt
from decodekit.reveal import Reveal, Revealed
from decodekit.vocabulary import Vocabulary


@runtime_checkable
class Session(Protocol):
    """One run of a model over one batch. Owns the cache: the one mutable thing in the library."""

    def advance(
        self, tokens: Int64[Tensor, " rows"], source_rows: Int64[Tensor, " rows"] | None
    ) -> Float32[Tensor, "rows vocab"]:
        """The logits after one more token on every row.

        Args:
            tokens: What each new row says.
            source_rows: The old row that each new row continues; None: its own. Because it is asked
                for here, a forgotten reorder of the cache cannot be written.
        """


@runtime_checkable
class Model(Protocol):
    """Gives the logits of the next token, and a session that goes on from there.

    Any object with this method can be decoded. One that also has a `vocabulary` is asked for its end
    ids and its tokenizer (`DescribedModel`); one that also has `score_tokens` scores whole texts in
    one pass (`ScoringModel`); one that also has `start_revealing` shows more than logits to the decoders
    that need it (`RevealingModel`).
    """

    def start(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple[Session, Float32[Tensor, "rows vocab"]]:
        """Computes every prompt once and widens it to `rows_per_prompt` rows, prompt-major.

        Args:
            prompt: The prompts, left-padded.
            rows_per_prompt: Beams or samples of each prompt.
            capacity: Columns that prompts and continuations take at most.

        Returns:
            The session, and the logits of the first new token: float32, contiguous.
        """


@runtime_checkable
class DescribedModel(Model, Protocol):
    """A model that knows what its ids mean."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What its ids mean."""


@runtime_checkable
class ScoringModel(Model, Protocol):
    """A model that scores given tokens in one pass."""

    def score_tokens(
        self, prompt: Prompt, tokens: Int64[Tensor, "rows new"], lengths: Int64[Tensor, " rows"]
    ) -> Float32[Tensor, "rows new"]:
        """The log-probability of every given token after its prompt and the tokens before it.

        Args:
            prompt: One prompt a row.
            tokens: The continuations; from `lengths` on, anything.
            lengths: How many of each row's tokens count.

        Returns:
            Nats; 0 from `lengths` on.
        """


@runtime_checkable
class RevealingSession(Session, Protocol):
    """A session that shows more than logits."""

    @property
    def revealed(self) -> Revealed:
        """What was asked for, with the newest logits."""


@runtime_checkable
class RevealingModel(Model, Protocol):
    """A model that shows more than logits: hidden states, early layers, attention."""

    def start_revealing(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int, reveal: Reveal
    ) -> tuple[RevealingSession, Float32[Tensor, "rows vocab"]]:
        """The same as `start`, with a session that shows what is asked for from the first logits on.

        Args:
            prompt: The prompts, left-padded.
            rows_per_prompt: Beams or samples of each prompt.
            capacity: Columns that prompts and continuations take at most.
            reveal: What to show.

        Raises:
            ModelError: If the model cannot show it.
        """
