"""Contracts of models and their sessions."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.prompt import Prompt
from decodekit.core.validation import shown
from decodekit.core.vocabulary import Vocabulary
from decodekit.errors import DecodekitError

# Shapes that implementations share: one token or one source row per row, several tokens, a mask that is True
# for columns with a token, and logits.
PerRow = Int64[Tensor, " rows"]
Ids = Int64[Tensor, "rows columns"]
Columns = Bool[Tensor, "rows columns"]
Logits = Float32[Tensor, "rows vocab"]


@runtime_checkable
class Session(Protocol):
    """One run of a model over one batch, with its cache. A run's parts receive no other mutable object."""

    def advance(self, tokens: PerRow, source_rows: PerRow | None) -> Logits:
        """The logits after one more token on every row.

        Args:
            tokens: The token that each new row appends.
            source_rows: The old row that each new row continues; None: the same row. It is a parameter here,
                so that no decoder can forget to reorder the cache.
        """


@runtime_checkable
class Model(Protocol):
    """Computes the logits of the next token, and returns a session that continues from there.

    Any object with this method can be decoded. Further methods are optional: `vocabulary` for end ids and a
    tokenizer (`ModelWithVocabulary`), `score_tokens` for scoring in one pass (`ScoringModel`),
    `start_with_outputs` for decoders that need more than logits (`ModelWithOutputs`).
    """

    def start(self, prompt: Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[Session, Logits]:
        """Computes every prompt once and widens it to `rows_per_prompt` rows, prompt-major.

        Args:
            prompt: The prompts, left-padded.
            rows_per_prompt: Beams or samples per prompt.
            capacity: Maximum number of columns of prompt and continuation.

        Returns:
            The session, and the logits of the first new token: float32, contiguous.
        """


@runtime_checkable
class ModelWithVocabulary(Model, Protocol):
    """A model that describes its ids."""

    @property
    def vocabulary(self) -> Vocabulary:
        """End ids, pad id, tokenizer and so on."""


@runtime_checkable
class ScoringModel(Model, Protocol):
    """A model that scores given tokens in one pass."""

    def score_tokens(
        self, prompt: Prompt, tokens: Int64[Tensor, "rows new"], lengths: PerRow
    ) -> Float32[Tensor, "rows new"]:
        """The log-probability of every given token after its prompt and the tokens before it.

        Args:
            prompt: One prompt per row.
            tokens: The continuations; ids past a row's length are ignored.
            lengths: Tokens of each row that count.

        Returns:
            Nats; 0 past the row's length.
        """


@runtime_checkable
class ShrinkingSession(Session, Protocol):
    """A session from which finished prompts can be evicted while others continue."""

    @property
    def can_evict(self) -> bool:
        """True if prompts can be evicted; the cache of some models cannot be cut."""

    def keep_prompts(self, prompts: Int64[Tensor, " kept"]) -> None:
        """Evicts all prompts but some: row `i` then belongs to prompt `prompts[i // rows_per_prompt]`.

        Args:
            prompts: The current prompts to keep, ascending; each keeps all its rows.
        """


@runtime_checkable
class MergeableSession(ShrinkingSession, Protocol):
    """A session that takes in new prompts between two steps, in place of evicted ones."""

    def can_merge(self) -> bool:
        """True if another session of the model can be merged; some caches do not support it."""

    def merge(self, other: Any) -> None:  # noqa: ANN401 - a session of the same class
        """Appends the prompts of another session; every prompt continues from its own position.

        Args:
            other: A session of the same model with as many rows per prompt, not to be used afterwards. Its
                sequences may be longer or shorter.
        """


@dataclass(frozen=True, kw_only=True)
class ModelOutputsSpec:
    """Outputs that a model returns besides its logits; none by default.

    Args:
        hidden: The last layer's states, from which the logits are computed.
        layers: Layers whose states the language-modelling head reads: 0 is the embeddings, `n` the output of
            the n-th layer; the normalized states of the last layer give the logits. `"low"` and `"high"` are
            every second layer of the lower or upper half (of the first or last 20 in a model of more than
            40), as the model counts them.
        attention: The last layer's attention, as the mean of its heads: to the source in an encoder-decoder
            (its cross-attention), else to the prompt.

    Raises:
        ValueError: If the layers are neither `"low"` nor `"high"` nor integers of at least 0.

    Example:
        >>> ModelOutputsSpec(hidden=True) | ModelOutputsSpec(attention=True)
        ModelOutputsSpec(hidden=True, layers=(), attention=True)
    """

    hidden: bool = False
    layers: tuple[int, ...] | Literal["low", "high"] = ()
    attention: bool = False

    def __post_init__(self) -> None:
        numbers = self.layers if isinstance(self.layers, tuple) else ()
        if self.layers not in ("low", "high", numbers) or any(
            type(layer) is not int or layer < 0 for layer in numbers
        ):
            raise ValueError(
                "ModelOutputsSpec: layers must be a tuple of integers of at least 0, or 'low' or 'high', "
                f"got {shown(self.layers)}."
            )

    def __or__(self, other: "ModelOutputsSpec") -> "ModelOutputsSpec":
        if self.layers and other.layers and self.layers != other.layers:
            raise DecodekitError(
                f"ModelOutputsSpec: layers must be set only once, got {self.layers} and {other.layers}."
            )
        return ModelOutputsSpec(
            hidden=self.hidden or other.hidden,
            layers=self.layers or other.layers,
            attention=self.attention or other.attention,
        )

    def __bool__(self) -> bool:
        return self.hidden or bool(self.layers) or self.attention


LOGITS_ONLY = ModelOutputsSpec()


class ModelOutputs(NamedTuple):
    """Outputs of a model that belong to its newest logits; None if not requested.

    Attributes:
        hidden: The newest token's states, from which the logits were computed.
        prompt_hidden: The states of all prompt tokens, one row per prompt; only with the first logits.
        layer_logits: The head's logits of the newest token's states in each requested layer.
        attention: The newest token's attention to the columns of the prompt, or of the source; at least 0,
            and 0 on padding. Rows sum to 1, or to less if some attention goes to other tokens.
    """

    hidden: Float32[Tensor, "rows width"] | None = None
    prompt_hidden: Float32[Tensor, "batch length width"] | None = None
    layer_logits: Float32[Tensor, "rows layers vocab"] | None = None
    attention: Float32[Tensor, "rows context"] | None = None


@runtime_checkable
class SessionWithOutputs(Session, Protocol):
    """A session that returns more than logits."""

    @property
    def model_outputs(self) -> ModelOutputs:
        """The requested outputs that belong to the newest logits."""


@runtime_checkable
class ModelWithOutputs(Model, Protocol):
    """A model that returns more than logits: hidden states, early layers, attention."""

    def start_with_outputs(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int, outputs_spec: ModelOutputsSpec
    ) -> tuple[SessionWithOutputs, Logits]:
        """The same as `start`, with a session that returns the requested outputs, for the first logits too.

        Raises:
            ModelError: If the model cannot return them.
        """


@runtime_checkable
class CapturableModel(Model, Protocol):
    """A model whose passes can be recorded and replayed, for `decode(capture=True)`."""

    def start_captured(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple[Session, Logits]:
        """The same as `start`, with a session that records its passes and replays them.

        Raises:
            ModelError: If the model cannot be recorded; the message gives the reason.
        """


@runtime_checkable
class VerifyingSession(Protocol):
    """A session whose rows can read different numbers of tokens in a pass, and discard the last of them."""

    def extend(self, tokens: Ids, counts: PerRow) -> Float32[Tensor, "rows columns vocab"]:
        """The logits after each of several more tokens on every row, in one pass.

        Args:
            tokens: The tokens that each row appends; ids past a row's count are ignored.
            counts: Tokens of each row that count; at least one row has one.

        Returns:
            Column `i` holds the logits of the token after `tokens[:, i]`, and anything past the count.
        """

    def keep(self, counts: PerRow) -> None:
        """Discards the tokens read since the last `keep`, except each row's first `counts` of them."""


@runtime_checkable
class VerifyingModel(Model, Protocol):
    """A model that reads several tokens per row in one pass and can discard them: for speculation.

    Any other model is started again in every pass, with one sequence per token.
    """

    def start_verifying(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple[VerifyingSession, Logits]:
        """The same as `start`, with a session that can discard tokens.

        The columns of accepted continuations count towards `capacity`.

        Raises:
            ModelError: If the model's cache cannot discard tokens.
        """


@runtime_checkable
class EarlyExitModel(Model, Protocol):
    """A model whose first layers and head are a model too."""

    def early_exit(self, layers: int) -> Model:
        """The model made of the first layers and the head, which shares its weights.

        Args:
            layers: Number of layers, at least 1 and fewer than the model has.

        Raises:
            ModelError: If the model cannot be cut, or has too few layers.
        """
