"""The contract of decoders."""

from abc import ABC, abstractmethod
from typing import Generic, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from typing_extensions import TypeVar

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.result import Decoded, Report
from decodekit.core.validation import CheckedOptions
from decodekit.models.protocols import LOGITS_ONLY, ModelOutputs, ModelOutputsSpec


class Selection(NamedTuple):
    """The decision of a step.

    Attributes:
        tokens: The token that each new row emits.
        source_rows: The old row that each new row continues, inside the same prompt; None if every row
            continues itself. Processor memory and the model's cache are reordered by it.
    """

    tokens: Int64[Tensor, " rows"]
    source_rows: Int64[Tensor, " rows"] | None = None


@runtime_checkable
class DecoderState(Protocol):
    """The state of a decoder: a NamedTuple with at least these fields.

    A state that lacks `model_scores` is refused: a decoder could not report log-probabilities without it.
    """

    @property
    def history(self) -> History:
        """Tokens of every row, for the processors."""

    @property
    def done(self) -> Bool[Tensor, ""]:
        """True once further steps cannot change the result."""

    @property
    def model_scores(self) -> Float32[Tensor, "rows vocab"] | None:
        """The scores of the current step before any processor, which the engine fills; None between steps."""


State = TypeVar("State", bound=DecoderState)


class Decoder(CheckedOptions, ABC, Generic[State, Report]):
    """An algorithm that turns scores into hypotheses. Holds its configuration; `State` holds a run's data.

    Contract: `step` is pure, keeps every shape, and does not read the device; once `done`, further steps do
    not change the result of `finalize`; if `batch_independent`, no prompt depends on another. If hypotheses
    are rows and a step chooses a token for each, derive from `RowDecoder` and write one method.

    Example:
        A decoder that emits the second-likeliest token, written out; see `RowDecoder` for the short form:

        >>> class SecondBest(dk.Decoder):
        ...     rows_per_prompt = 1
        ...     def init(self, history, limits): return RowState.start(history, limits)
        ...     def step(self, scores, state): return state.emit(scores.topk(2).indices[:, 1], scores)
        ...     def finalize(self, state): return state.decoded(hypotheses=1)
    """

    batch_independent: bool = False
    """True if prompts do not depend on each other. Then they can be decoded in several batches, and finished
    ones are evicted. The first axis of every tensor of the state has equally many entries per prompt,
    prompt-major, or the tensor is 0-d. A report is a dataclass of such tensors and of lists with an entry per
    prompt."""

    delay: int = 0
    """Steps between reading a token's scores and choosing the token. The run gets this many extra steps.
    Contrastive search reads candidates in one step and chooses in the next: its delay is 1."""

    @property
    @abstractmethod
    def rows_per_prompt(self) -> int:
        """Rows of each prompt: beams or samples. A class attribute will do."""

    @property
    def outputs_spec(self) -> ModelOutputsSpec:
        """Outputs of the model that the decoder needs besides logits. By default none."""
        return LOGITS_ONLY

    def on_model_outputs(self, model_outputs: ModelOutputs, state: State) -> State:  # noqa: ARG002
        """The state with these outputs, before every step; called only if `outputs_spec` asks for some.

        The first call may add to the shapes of the state; later ones must not.
        """
        return state

    def prepare(self, logits: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, "rows vocab"]:
        """The scores that the processors see. Beam search normalizes here, sampling does not."""
        return logits

    @abstractmethod
    def init(self, history: History, limits: Limits) -> State:
        """The state before the first step, rows prompt-major."""

    @abstractmethod
    def step(self, scores: Float32[Tensor, "rows vocab"], state: State) -> tuple[State, Selection]:
        """One token for every row."""

    def stable_prefix(self, state: State) -> list[list[list[int]]]:  # noqa: ARG002
        """The final new tokens of every hypothesis that will be returned: no further step can change them.

        For streaming: prompts, hypotheses, ids. May read the device. By default empty until the end.
        """
        return []

    def finished(self, state: State) -> Bool[Tensor, " batch"] | None:  # noqa: ARG002
        """True for prompts whose results no further step can change; None (the default) if not known."""
        return None

    @abstractmethod
    def finalize(self, state: State) -> Decoded[Report]:
        """The result. Only this method and `stable_prefix` may read the device."""


class AdjustingDecoder(Decoder[State, Report]):
    """A decoder that changes the prepared scores by outputs of the model, before any processor.

    The log-probabilities that are reported stay those of the model.
    """

    @abstractmethod
    def adjust(self, scores: Float32[Tensor, "rows vocab"], state: State) -> Float32[Tensor, "rows vocab"]:
        """The scores that the processors see, from the prepared ones."""
