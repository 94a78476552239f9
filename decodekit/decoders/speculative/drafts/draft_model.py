"""A smaller model as draft."""

from dataclasses import dataclass
from typing import final

from decodekit.core.prompt import Prompt
from decodekit.decoders.speculative.drafts.base import Draft, DraftSession
from decodekit.decoders.speculative.drafts.draft_session import ModelDraft
from decodekit.models.protocols import Model


@final
@dataclass(frozen=True)
class DraftModel(Draft):
    """Drafts with another model of the same vocabulary, a smaller and faster one.

    Args:
        model: The draft model. Where the run's model is an encoder-decoder it may be one too, which reads
            the same source, or a language model, which knows only what the decoder says.

    Raises:
        TypeError: If `model` is not a `Model`.

    Example:
        >>> good = dk.testing.MarkovModel([[0.1, 0.9], [0.8, 0.2]])
        >>> small = dk.testing.MarkovModel([[0.4, 0.6], [0.6, 0.4]])
        >>> out = dk.decode(good, [[0]], dk.Speculative(DraftModel(small)), max_new_tokens=6)
        >>> out.tokens, out.report.passes
        (tensor([[[1, 0, 1, 0, 1, 0]]]), tensor([[1]]))

    Source:
        Leviathan, Kalman & Matias, 2023, https://arxiv.org/abs/2211.17192; Chen et al., 2023,
        https://arxiv.org/abs/2302.01318.

    Hugging Face:
        `generate(assistant_model=...)`, for one prompt at a time.
    """

    model: Model

    def __post_init__(self) -> None:
        if isinstance(self.model, type) or not isinstance(self.model, Model):
            raise TypeError(
                f"DraftModel: model must be a decodekit.Model, got {type(self.model).__name__}. "
                "Wrap a transformers model: use dk.HFModel(model, tokenizer)."
            )

    def start(
        self,
        model: Model,  # noqa: ARG002 - the contract's signature
        prompt: Prompt,
        *,
        rows_per_prompt: int,
        capacity: int,
    ) -> DraftSession:
        """The draft model, after the prompts."""
        return ModelDraft(self.model, prompt, rows_per_prompt, capacity)
