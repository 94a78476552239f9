"""Stop by a function of the text or the ids."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.stopping_criterion import Finished, LogProbs, StoppingContext, StoppingCriterion
from decodekit.core.validation import TEXT, check_fields, shown
from decodekit.stopping._shared.new_text import NewText, check_tokenizer


@final
@dataclass(frozen=True)
class StopWhen(StoppingCriterion):
    """Finishes a hypothesis when a function of its new text, or of its new ids, returns True.

    Runs on the host, row by row; for many rows derive from `StoppingCriterion` and use tensors. Finished rows
    are passed too, as long as other rows go on.

    Args:
        function: Pure function of the new text (or the new ids) of a hypothesis: True if it is finished.
        ids: True: the function takes a list of ids in place of text.
        reason: The `finish_reason`.

    Raises:
        TypeError: If `function` cannot be called.
        ValueError: If `reason` is not text.
        DecodekitError: In a run, if the function takes text and the model has no tokenizer.

    Example:
        >>> stop = StopWhen(lambda text: text.count(" ") == 5, reason="five words")
        >>> dk.decode(dk.load(), "Once upon a time there was", dk.Greedy(), stop=stop,
        ...           max_new_tokens=20).texts
        [[' a man who had a']]

    Hugging Face:
        A custom `StoppingCriteria`.
    """

    function: Callable[[Any], bool]
    ids: bool = False
    reason: str = "stopped"

    capturable = False
    batch_independent = True

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"StopWhen: function must be callable, got {shown(self.function)}.")
        check_fields(self, reason=TEXT)

    @override
    def init(self, history: History, run: StoppingContext) -> NewText:
        if not self.ids:
            check_tokenizer(run, "StopWhen: a function of text needs", "ids=True")
        return NewText(int(history.position), run.vocabulary)

    @override
    def apply(self, history: History, log_probs: LogProbs, memory: NewText) -> tuple[Finished, NewText]:
        rows = memory.ids(history) if self.ids else memory.texts(history)
        finished = [bool(self.function(row)) for row in rows]
        return torch.tensor(finished, device=log_probs.device), memory
