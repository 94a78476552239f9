"""Greedy search."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Bool, Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.result import Decoded
from decodekit.decoders.base import Decoder, Selection
from decodekit.decoders.rows import RowState


@final
@dataclass(frozen=True)
class Greedy(Decoder[RowState]):
    r"""Says the likeliest token at every step.

    $y_t = \arg\max_v P(v \mid y_{<t}, x)$; of tied tokens the one with the lowest id.

    Example:
        >>> dk.decode(dk.load(), "she was as beautiful as the", dk.Greedy(), max_new_tokens=1).texts
        [[' sun']]

    Hugging Face:
        `generate(do_sample=False, num_beams=1)`, the same tokens.
    """

    batch_independent = True

    @property
    def rows_per_prompt(self) -> int:
        """One row a prompt."""
        return 1

    def init(self, history: History, limits: Limits) -> RowState:
        """Nothing said yet."""
        return RowState.start(history, limits)

    def record_log_probs(self, scores: Float32[Tensor, "rows vocab"], state: RowState) -> RowState:
        """Keeps the logits, to report the chosen tokens' log-probabilities."""
        return state._replace(model_scores=scores)

    def step(self, scores: Float32[Tensor, "rows vocab"], state: RowState) -> tuple[RowState, Selection]:
        """The argmax of every row."""
        return state.emit(scores.argmax(-1), scores)

    def stable_prefix(self, state: RowState) -> list[list[list[int]]]:
        """All that was said."""
        return state.stable_prefix(hypotheses=1)

    def finished(self, state: RowState) -> Bool[Tensor, " batch"]:
        """Prompts whose row is finished."""
        return state.finished

    def finalize(self, state: RowState) -> Decoded:
        """One hypothesis a prompt."""
        return state.decoded(hypotheses=1)
