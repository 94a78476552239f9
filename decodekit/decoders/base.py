"""The contract of decoders."""

from abc import ABC, abstractmethod
from typing import Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.result import Decoded
from decodekit.models.protocols import LOGITS_ONLY, ModelOutputs, ModelOutputsSpec


class Selection(NamedTuple):
    """What a step decided.

    Attributes:
        tokens: The token that each new row says next.
        source_rows: The old row that each new row continues; None where every row continues itself.
            Processor memory and the model's cache are reordered by it. Stays inside the prompt.
    """

    tokens: Int64[Tensor, " rows"]
    source_rows: Int64[Tensor, " rows"] | None = None


@runtime_checkable
class DecoderState(Protocol):
    """What evolves during a run: a NamedTuple with at least these two."""

    @property
    def history(self) -> History:
        """What every row has said, for the processors."""

    @property
    def done(self) -> Bool[Tensor, ""]:
        """True once further steps cannot change the result."""


State = TypeVar("State", bound=DecoderState)


class Decoder(ABC, Generic[State]):
    """An algorithm that turns scores into text. Holds its configuration; what evolves is in State.

    Contract: `step` is pure, keeps every shape, and does not read the device; once `done`, further
    steps do not change what `finalize` returns; rows of one prompt never look at another prompt.

    Example:
        A complete decoder that says the second-likeliest token at every step:

        >>> class SecondBest(dk.Decoder):
        ...     rows_per_prompt = 1
        ...     def init(self, history, limits): return RowState.start(history, limits)
        ...     def record_log_probs(self, scores, state): return state._replace(model_scores=scores)
        ...     def step(self, scores, state): return state.emit(scores.topk(2).indices[:, 1], scores)
        ...     def finalize(self, state): return state.decoded(hypotheses=1)
    """

    batch_independent: bool = False
    """True where prompts do not know of each other: then they can be decoded in several batches, and leave
    theirs when `finished` says so. Every tensor of the state leads with as many entries for each prompt,
    prompt-major, or is 0-d; a report is a dataclass of such tensors, and of lists with an entry a prompt."""

    @property
    @abstractmethod
    def rows_per_prompt(self) -> int:
        """Rows that each prompt is widened to: beams or samples. A class attribute will do."""

    @property
    def outputs_spec(self) -> ModelOutputsSpec:
        """What the model must show beside its logits. By default nothing."""
        return LOGITS_ONLY

    @property
    def delay(self) -> int:
        """Steps after its logits were seen at which a token is decided; 0 unless said otherwise.

        A decoder that tries several tokens and keeps one decides a step late, and is given a step more.
        """
        return 0

    def on_model_outputs(self, model_outputs: ModelOutputs, state: State) -> State:  # noqa: ARG002
        """Keeps what the model has shown, before every step; called only where `outputs_spec` asks for it.

        The first call may add to the state's shapes; later ones must not.
        """
        return state

    def prepare(self, logits: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, "rows vocab"]:
        """What the processors see. Beam search normalises here, sampling does not."""
        return logits

    def record_log_probs(self, scores: Float32[Tensor, "rows vocab"], state: State) -> State:  # noqa: ARG002
        """Keeps from the prepared scores, before any processor, what is reported later.

        Here a decoder that reports the model's own log-probabilities takes them down.
        """
        return state

    def adjust(self, scores: Float32[Tensor, "rows vocab"], state: State) -> Float32[Tensor, "rows vocab"]:  # noqa: ARG002
        """Changes the prepared scores by what was seen, before any processor. By default it does not."""
        return scores

    @abstractmethod
    def init(self, history: History, limits: Limits) -> State:
        """The state before the first step, rows prompt-major."""

    @abstractmethod
    def step(self, scores: Float32[Tensor, "rows vocab"], state: State) -> tuple[State, Selection]:
        """One token for every row."""

    def stable_prefix(self, state: State) -> list[list[list[int]]]:  # noqa: ARG002
        """The new tokens that no further step can change, of every hypothesis that will be returned.

        For streaming: prompts, hypotheses, ids. May read the device. By default nothing is settled
        before the end.
        """
        return []

    def finished(self, state: State) -> Bool[Tensor, " batch"] | None:  # noqa: ARG002
        """The prompts whose results no further step can change. By default that is not known."""
        return None

    @abstractmethod
    def finalize(self, state: State) -> Decoded:
        """The result. Beside `stable_prefix` the only method that may read the device."""


def write_column(
    buffer: Tensor, column: Int64[Tensor, ""], values: Tensor, where: Tensor | None = None
) -> Tensor:
    """`buffer` with `values` in one column of its last axis, where `where` holds."""
    here = torch.arange(buffer.shape[-1], device=buffer.device) == column
    if where is not None:
        here = here & where[..., None]
    return torch.where(here, values[..., None], buffer)
