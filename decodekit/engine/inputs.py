"""What a run is given, as the loops take it."""

from collections.abc import Sequence

from torch import nn

from decodekit.core.vocabulary import Vocabulary
from decodekit.errors import DecodekitError
from decodekit.models.hf.model import HFModel
from decodekit.models.protocols import DescribedModel, Model
from decodekit.processors.base import Chain, LogitsProcessor

IDENTITY = Chain()


def as_model(model: Model | nn.Module) -> Model:
    """The model itself, or a transformers model wrapped in `HFModel`."""
    if isinstance(model, Model) and not isinstance(model, type):
        return model
    if isinstance(model, nn.Module):
        return HFModel(model, packed=False, recorded=False)  # for one call they do not pay
    raise DecodekitError(
        f"decode: model must be a Model or a transformers model, got {model!r:.80}. "
        "Use dk.load(name) or dk.HFModel(model, tokenizer)."
    )


def as_processor(processor: LogitsProcessor | Sequence[LogitsProcessor]) -> LogitsProcessor:
    """The processor itself, or a sequence of them as a chain."""
    if isinstance(processor, LogitsProcessor):
        return processor
    if not isinstance(processor, Sequence):
        raise TypeError(
            f"decode: processor must be a LogitsProcessor or a sequence of them, got {processor!r:.80}."
        )
    return Chain(*processor)


def vocabulary_of(model: Model) -> Vocabulary:
    """What the model's ids mean, as far as it knows."""
    return model.vocabulary if isinstance(model, DescribedModel) else Vocabulary()
