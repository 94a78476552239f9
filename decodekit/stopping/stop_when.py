"""Any function of a row's text."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.stopping_criterion import StoppingContext, StoppingCriterion, check_reason
from decodekit.errors import DecodekitError
from decodekit.stopping._shared.new_text import NewText, start_reading_text


@final
@dataclass(frozen=True)
class StopWhen(StoppingCriterion):
    """Finishes a hypothesis when a function of its new text, or its new ids, says so.

    Runs on the host, row by row; for many rows derive from `StoppingCriterion` and use tensors. Rows that
    have finished are asked too, as long as others go on.

    Args:
        function: From the new text (or the new ids) of one hypothesis to whether it is finished. Pure.
        ids: True: it is given a list of ids instead of text.
        reason: What `finish_reason` says.

    Raises:
        TypeError: If `function` cannot be called.
        ValueError: If `reason` is not text.
        DecodekitError: In a run, if it wants text and the model has no tokenizer.

    Example:
        >>> stop = StopWhen(lambda text: text.count(" ") == 5, reason="five words")
        >>> dk.decode(dk.load(), "Once upon a time there was", dk.Greedy(), stop=stop,
        ...           max_new_tokens=20).texts
        [[' a man who had a']]

    Hugging Face:
        A `StoppingCriteria` of one's own.
    """

    function: Callable[[Any], bool]
    ids: bool = False
    reason: str = "stopped"

    capturable = False
    batch_independent = True

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"StopWhen: function must be callable, got {self.function!r:.80}.")
        check_reason("StopWhen", self.reason)

    def init(self, history: History, run: StoppingContext) -> NewText:
        """Where the new text begins, and what reads it."""
        if not self.ids and run.vocabulary.tokenizer is None:
            raise DecodekitError(
                "StopWhen: a function of text needs a tokenizer, and the model has none. Use ids=True, or "
                "HFModel(model, tokenizer)."
            )
        return start_reading_text(history, run)

    def apply(
        self,
        history: History,
        log_probs: Float32[Tensor, " rows"],
        memory: NewText,
    ) -> tuple[Bool[Tensor, " rows"], NewText]:
        """Rows of which the function says so."""
        rows = memory.ids(history) if self.ids else memory.texts(history)
        said = [bool(self.function(row)) for row in rows]
        return torch.tensor(said, device=log_probs.device), memory
