"""The contract of models."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.prompt import Prompt
from decodekit.core.vocabulary import Vocabulary
from decodekit.models.model_outputs import ModelOutputs, ModelOutputsSpec


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
class ShrinkingSession(Session, Protocol):
    """A session that prompts can leave, when they are finished and others go on."""

    @property
    def shrinks(self) -> bool:
        """Whether this run's prompts can leave: the cache of some models cannot be cut."""

    def keep_prompts(self, prompts: Int64[Tensor, " kept"]) -> None:
        """Goes on with some of its prompts only: row `i` is from now on a row of prompt `prompts[i // rows]`.

        Args:
            prompts: Which of those it has now, ascending; each keeps all its rows.
        """


@runtime_checkable
class MergeableSession(ShrinkingSession, Protocol):
    """A session that prompts can also join, while others are under way: places that are free are filled."""

    def can_join(self) -> bool:
        """Whether another run of the model can be taken in: the cache of some models cannot be joined."""

    def join(self, other: "MergeableSession") -> None:
        """Goes on with the prompts of another run after its own, each from where it is.

        Args:
            other: A run of the same model with as many rows a prompt, which is not used after. Its texts may
                be longer or shorter.
        """


@runtime_checkable
class Model(Protocol):
    """Gives the logits of the next token, and a session that goes on from there.

    Any object with this method can be decoded. One that also has a `vocabulary` is asked for its end
    ids and its tokenizer (`DescribedModel`); one that also has `score_tokens` scores whole texts in
    one pass (`ScoringModel`); one that also has `start_with_outputs` shows more than logits to the decoders
    that need it (`ModelWithOutputs`).
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
class SessionWithOutputs(Session, Protocol):
    """A session that shows more than logits."""

    @property
    def model_outputs(self) -> ModelOutputs:
        """What was asked for, with the newest logits."""


@runtime_checkable
class ModelWithOutputs(Model, Protocol):
    """A model that shows more than logits: hidden states, early layers, attention."""

    def start_with_outputs(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int, outputs_spec: ModelOutputsSpec
    ) -> tuple[SessionWithOutputs, Float32[Tensor, "rows vocab"]]:
        """The same as `start`, with a session that shows what is asked for from the first logits on.

        Args:
            prompt: The prompts, left-padded.
            rows_per_prompt: Beams or samples of each prompt.
            capacity: Columns that prompts and continuations take at most.
            reveal: What to show.

        Raises:
            ModelError: If the model cannot show it.
        """


@runtime_checkable
class CapturableModel(Model, Protocol):
    """A model whose passes can be recorded and replayed, for `decode(capture=True)`."""

    def start_captured(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple[Session, Float32[Tensor, "rows vocab"]]:
        """The same as `start`, with a session that records its passes and replays them.

        Args:
            prompt: The prompts, left-padded.
            rows_per_prompt: Beams or samples of each prompt.
            capacity: Columns that prompts and continuations take at most.

        Raises:
            ModelError: If the model cannot be recorded; the message says why.
        """


@runtime_checkable
class VerifyingSession(Protocol):
    """A session whose rows read different numbers of tokens, and can take back what they have read."""

    def extend(
        self, tokens: Int64[Tensor, "rows columns"], counts: Int64[Tensor, " rows"]
    ) -> Float32[Tensor, "rows columns vocab"]:
        """The logits after each of several more tokens on every row, in one pass.

        Args:
            tokens: What each row goes on with; from `counts` on, anything.
            counts: How many of each row's tokens count; some row has one at least.

        Returns:
            Column `i` holds the logits of the token after `tokens[:, i]`; from `counts` on, anything.
        """

    def keep(self, counts: Int64[Tensor, " rows"]) -> None:
        """Takes back what each row has read since the last `keep`, except its first `counts` tokens."""


@runtime_checkable
class VerifyingModel(Model, Protocol):
    """A model that reads several tokens a row in one pass and can take them back: for speculation.

    Any other model is read anew from its beginning for that, one text for each token.
    """

    def start_verifying(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple[VerifyingSession, Float32[Tensor, "rows vocab"]]:
        """The same as `start`, with a session that can take back tokens.

        Args:
            prompt: The prompts, left-padded.
            rows_per_prompt: Samples of each prompt.
            capacity: Columns that a prompt and what counts of its continuation take at most.

        Raises:
            ModelError: If the model's cache cannot take back what it has read.
        """


@runtime_checkable
class EarlyExitModel(Model, Protocol):
    """A model that can stop early: its first layers, and its head, are a model too."""

    def shallow(self, layers: int) -> Model:
        """The model made of the first layers and the head, which shares its weights.

        Args:
            layers: How many, at least 1 and fewer than it has.

        Raises:
            ModelError: If it cannot be cut, or has not as many.
        """
