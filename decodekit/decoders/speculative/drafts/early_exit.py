"""Drafts from the model's own first layers."""

from dataclasses import dataclass
from typing import final

from typing_extensions import override

from decodekit.core.prompt import Prompt
from decodekit.core.validation import at_least, check_fields, shown
from decodekit.decoders.speculative.drafts.base import Draft, DraftSession
from decodekit.decoders.speculative.drafts.draft_model import DraftModelSession
from decodekit.errors import ModelError
from decodekit.models.protocols import EarlyExitModel, Model


@final
@dataclass(frozen=True)
class EarlyExit(Draft):
    """Drafts with the model's own first layers: its head reads the hidden states of an early layer.

    Needs no second model and copies no weights; the draft has its own cache. Good for models trained for
    early exit; without such training early layers may predict poorly.

    Args:
        layer: Number of layers to run, at least 1 and below the model's number of layers.

    Raises:
        ValueError: If `layer` is not an integer of at least 1.
        ModelError: In a run, if the model has no more layers than that, is an encoder-decoder, or cannot
            be cut.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon a", dk.Speculative(EarlyExit(1)), max_new_tokens=8)
        >>> out.texts == dk.decode(dk.load(), "Once upon a", dk.Greedy(), max_new_tokens=8).texts
        True

    Source:
        Elhoushi et al., 2024, https://arxiv.org/abs/2404.16710, whose draft and model share one cache.

    Hugging Face:
        `generate(assistant_early_exit=layer)`, for one prompt at a time.
    """

    layer: int

    def __post_init__(self) -> None:
        check_fields(self, layer=at_least(1))

    @override
    def start(self, model: Model, prompt: Prompt, *, rows_per_prompt: int, capacity: int) -> DraftSession:
        if not isinstance(model, EarlyExitModel):
            raise ModelError(
                f"EarlyExit: the first layers of {shown(model)} cannot draft, because it "
                "has no early_exit(). Use dk.HFModel, write that method, or use another draft."
            )
        return DraftModelSession(model.early_exit(self.layer), prompt, rows_per_prompt, capacity)
