"""What the ids of a transformers model mean."""

from typing import Any

from decodekit.core.vocabulary import Tokenizer, Vocabulary
from decodekit.models.hf.forwards.encoder_decoder import decoder_start_id


def read_vocabulary(model: Any, config: Any, tokenizer: Tokenizer | None) -> Vocabulary:  # noqa: ANN401
    """End, pad, BOS and start ids as the generation config has them, else the model's config."""
    settings = getattr(model, "generation_config", None) or config
    end = settings.eos_token_id
    pad = settings.pad_token_id
    if pad is None and tokenizer is not None:
        pad = getattr(tokenizer, "pad_token_id", None)
    start = decoder_start_id(model) if model.config.is_encoder_decoder else None
    size = model.get_input_embeddings().weight.shape[0]
    if start is not None:  # both halves' ids, where they differ
        size = max(size, model.get_output_embeddings().weight.shape[0])
    return Vocabulary(
        size=size,
        end_ids=() if end is None else tuple(end) if isinstance(end, list | tuple) else (end,),
        pad_id=pad,
        bos_id=settings.bos_token_id,
        decoder_start_id=start,
        tokenizer=tokenizer,
    )
