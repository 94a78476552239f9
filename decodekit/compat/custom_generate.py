"""decodekit's loop inside `model.generate`."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from decodekit.compat.from_hf import FromHF
from decodekit.compat.generate import perform
from decodekit.compat.inputs import (
    PAST_NAMES,
    as_mask,
    model_after,
    plain_config,
    special_ids,
    with_mask,
    wrap,
)
from decodekit.compat.processors import Setting, last
from decodekit.compat.recipe import Recipe, criteria_of, decoder_of, take_limits
from decodekit.compat.refusals import refuse_arguments, refuse_options
from decodekit.core.history import Source
from decodekit.core.prompt import Prompt
from decodekit.decoders.base import Decoder
from decodekit.errors import DecodekitError
from decodekit.models.hf.model import HFModel
from decodekit.processors.base import Chain, LogitsProcessor
from decodekit.processors.classifier_free_guidance import ClassifierFreeGuidance
from decodekit.processors.encoder_no_repeat_ngram import EncoderNoRepeatNGram
from decodekit.processors.encoder_repetition_penalty import EncoderRepetitionPenalty
from decodekit.processors.prefix_constraint import PrefixConstraint
from decodekit.processors.renormalize import Renormalize
from decodekit.processors.repetition_penalty import RepetitionPenalty

# Arguments that generate prepares for the model; decodekit's sessions make their own.
_PREPARED = {
    *PAST_NAMES,
    *("attention_mask", "decoder_attention_mask", "encoder_outputs", "logits_to_keep", "position_ids"),
    "use_cache",
}


def custom_generate(  # noqa: PLR0913, PLR0917 - the contract of generate's callables
    model: Any,  # a transformers model
    input_ids: Int64[Tensor, "rows length"],
    logits_processor: Any,  # transformers' LogitsProcessorList
    stopping_criteria: Any,  # transformers' StoppingCriteriaList
    generation_config: Any,  # transformers' GenerationConfig
    decoder: Decoder[Any] | None = None,
    dk_streamer: Any = None,  # transformers' BaseStreamer
    **model_kwargs: Any,
) -> Any:
    """Decodes with decodekit inside `model.generate(..., custom_generate=dk.compat.hf.custom_generate)`.

    `generate` reads its arguments and makes its processors and criteria; the loop is decodekit's: greedy
    search, sampling, beam search or beam sampling, by the configuration, or any decoder. The prompts, which
    `generate` repeats for every beam, are computed once. Processors of decodekit among `logits_processor`
    follow their beams, and so does guidance.

    Args:
        model: The model. `generate` passes it, like every argument except `decoder` and `dk_streamer`.
        input_ids: The prompts, repeated for every beam.
        logits_processor: The processors, in order.
        stopping_criteria: The stopping criteria.
        generation_config: The configuration of the call.
        decoder: The decoder, as in `generate(..., decoder=dk.BeamSearch(4))`; requires `num_beams` and
            `num_return_sequences` of 1. None: the decoder that the configuration describes.
        dk_streamer: A streamer. `generate` does not pass its own `streamer` on.
        **model_kwargs: Further inputs that `generate` has prepared for the model.

    Raises:
        DecodekitError: For an unsupported option; the message names it.

    Example:
        >>> bundled = dk.load()
        >>> ids = bundled.tokenizer("Once upon a", return_tensors="pt").input_ids
        >>> options = {"num_beams": 3, "max_new_tokens": 5}
        >>> ours = bundled.model.generate(ids, custom_generate=dk.compat.hf.custom_generate, **options)
        >>> torch.equal(ours, bundled.model.generate(ids, **options))
        True
    """
    config = plain_config(generation_config)
    refuse_options(config)
    refuse_arguments(
        {name: value for name, value in model_kwargs.items() if name not in _PREPARED},
        "decodekit makes the model's other inputs itself.",
    )
    _refuse_half_a_prompt(generation_config, input_ids.shape[1])
    wrapped = wrap(model)
    length = input_ids.shape[1]
    repeats = max(config.num_beams or 1, config.num_return_sequences or 1)
    end_ids, pad_id = special_ids(wrapped, config)
    limit, ends, criteria = take_limits(stopping_criteria, config.max_length - length, end_ids, length)
    prompt = _prompt(input_ids[::repeats], model_kwargs, repeats)
    if prompt.states is not None:
        _refuse_unknown_source(logits_processor)
    recipe = Recipe(
        decoder=decoder_of(config) if decoder is None else decoder,
        processor=Chain(*_processors(logits_processor, config, wrapped, own=decoder is not None)),
        stop=criteria_of(criteria, config),
        max_new_tokens=limit,
        end_ids=tuple(token for token in ends or () if 0 <= token < (wrapped.vocabulary.size or token + 1)),
        pad_id=pad_id,
    )
    cache = next((model_kwargs[name] for name in PAST_NAMES if name in model_kwargs), None)
    return perform(model_after(wrapped, config, _past(cache, repeats)), prompt, recipe, config, dk_streamer)


def _refuse_unknown_source(processors: Any) -> None:
    """Raise for processors that need the source: generate passes the encoder's output only."""
    for processor in processors:
        if isinstance(processor, Chain):
            _refuse_unknown_source(processor.processors)
        kinds = EncoderNoRepeatNGram | EncoderRepetitionPenalty
        if isinstance(processor, kinds) and processor.source is None:
            raise DecodekitError(
                f"custom_generate: {processor!r} needs the ids that the encoder has read, and generate does "
                "not pass them on. Pass source=."
            )


def _prompt(ids: Int64[Tensor, "batch length"], prepared: dict[str, Any], repeats: int) -> Prompt:
    """The prompts once each, from the rows that generate has prepared."""

    def mask(name: str, like: Tensor) -> Tensor:
        rows = prepared.get(name)
        return as_mask(like, None if rows is None else rows[::repeats])

    encoded = prepared.get("encoder_outputs")
    if encoded is None:
        return Prompt(ids, mask("attention_mask", ids))
    states = encoded.last_hidden_state[::repeats]
    valid = mask("attention_mask", states[..., 0])
    # The ids of the source are unknown here and not needed: the states of the encoder are enough.
    source = Source(torch.zeros_like(valid, dtype=torch.long), valid)
    return Prompt(ids, mask("decoder_attention_mask", ids), source, states)


def _past(cache: Any, repeats: int) -> Any:
    """The cache, if it is the caller's: generate makes an empty one itself."""
    if cache is None:
        return None
    is_callers = getattr(cache, "_is_user_defined", False) and repeats == 1
    return cache if is_callers or int(cache.get_seq_length()) > 0 else None


def _refuse_half_a_prompt(config: Any, length: int) -> None:
    """Raise if the ids of the columns in a cache are missing."""
    if getattr(config, "_mask_length", length) != length:
        raise DecodekitError(
            f"custom_generate: with a cache, pass all ids of the prompts, got {length} of "
            f"{config._mask_length}. Pass those in the cache, too."  # noqa: SLF001 - the only place that has it
        )


def _processors(given: Any, config: Any, wrapped: HFModel, *, own: bool) -> Iterator[LogitsProcessor]:
    """The processors of generate; decodekit's equivalent in place of one with state per row.

    `own` is True if the caller passed the decoder, which has another number of rows.
    """
    for processor in given:
        name = type(processor).__name__
        if name == "UnbatchedClassifierFreeGuidanceLogitsProcessor":
            context = processor.unconditional_context
            prompts = with_mask(context["input_ids"], context["attention_mask"])
            yield ClassifierFreeGuidance(wrapped, processor.guidance_scale, prompts)
        elif name == "SynthIDTextWatermarkLogitsProcessor" and config.watermarking_config is not None:
            yield from (
                marked for _, marked in last(Setting(config=config, end_ids=())) if marked != Renormalize()
            )
        elif own and name == "RepetitionPenaltyLogitsProcessor":
            yield RepetitionPenalty(processor.penalty)
        elif own and name == "PrefixConstrainedLogitsProcessor":
            yield PrefixConstraint(processor._prefix_allowed_tokens_fn)  # noqa: SLF001 - the only place that has it
        else:
            yield FromHF(processor)
