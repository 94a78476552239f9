"""What a decoder or scorer may ask of a model beside logits."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxtyping import Float32
from torch import Tensor

from decodekit.errors import DecodekitError


@dataclass(frozen=True, kw_only=True)
class ModelOutputsSpec:
    """What a model is asked to show beside its logits; nothing by default.

    Args:
        hidden: The last layer's states, from which the logits are made.
        layers: The layers whose states are read by the language-modelling head: 0 is the embeddings,
            `n` what comes out of the n-th layer; the last layer's, which are normalised, are the logits.
            `"low"` and `"high"` are every second layer of the lower or upper half (of the first or last 20,
            where there are more than 40), as the model counts them.
        attention: The last layer's attention to what was given: to the source of an encoder-decoder
            (its cross-attention), else to the prompt; the mean of the heads.

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
                f"got {self.layers!r:.80}."
            )

    def __or__(self, other: "ModelOutputsSpec") -> "ModelOutputsSpec":
        if self.layers and other.layers and self.layers != other.layers:
            raise DecodekitError(
                f"ModelOutputsSpec: layers must be asked for once, got {self.layers} and {other.layers}."
            )
        return ModelOutputsSpec(
            hidden=self.hidden or other.hidden,
            layers=self.layers or other.layers,
            attention=self.attention or other.attention,
        )

    def __bool__(self) -> bool:
        return self.hidden or bool(self.layers) or self.attention


class ModelOutputs(NamedTuple):
    """What a model has shown with its newest logits; None where it was not asked.

    Attributes:
        hidden: The newest token's states, from which the logits were made.
        prompt_hidden: All the prompt's states, one text a prompt; only with the first logits.
        layer_logits: What the head makes of the newest token's states in each layer that was asked for.
        attention: The newest token's attention to the prompt's columns, or to the source's; at least 0, and
            0 on padding. Rows sum to 1, or to less where attention goes to other tokens as well.
    """

    hidden: Float32[Tensor, "rows width"] | None = None
    prompt_hidden: Float32[Tensor, "batch length width"] | None = None
    layer_logits: Float32[Tensor, "rows layers vocab"] | None = None
    attention: Float32[Tensor, "rows context"] | None = None


LOGITS_ONLY = ModelOutputsSpec()
