"""The model's own first layers as draft."""

from dataclasses import dataclass
from typing import final

from decodekit.core.prompt import Prompt
from decodekit.core.validation import is_count
from decodekit.decoders.speculative.drafts.base import Draft, DraftSession
from decodekit.decoders.speculative.drafts.draft_session import ModelDraft
from decodekit.errors import ModelError
from decodekit.models.protocols import EarlyExitModel, Model


@final
@dataclass(frozen=True)
class EarlyExit(Draft):
    """Drafts with the model's own first layers: its head reads the states of an early layer.

    No second model and no second copy of any weight; the draft keeps a cache of its own, of as many layers.
    Good for models that were trained to exit early; others may be hard to read that soon.

    Args:
        layer: After how many layers to read, at least 1 and below the model's number of layers.

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
        if not is_count(self.layer, 1):
            raise ValueError(f"EarlyExit: layer must be an integer of at least 1, got {self.layer!r}.")

    def start(self, model: Model, prompt: Prompt, *, rows_per_prompt: int, capacity: int) -> DraftSession:
        """The first layers, after the prompts."""
        if not isinstance(model, EarlyExitModel):
            raise ModelError(
                f"EarlyExit: the model must be one whose first layers are a model too, and {model!r:.80} has "
                "no early_exit(). Use dk.HFModel, write that method, or use another draft."
            )
        return ModelDraft(model.early_exit(self.layer), prompt, rows_per_prompt, capacity)
