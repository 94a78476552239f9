"""`generate`, run by decodekit."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from decodekit.compat.inputs import merge_config, read_inputs, with_mask, wrap
from decodekit.compat.outputs import Feed, OutputRecorder
from decodekit.compat.processors import Setting
from decodekit.compat.recipe import Recipe, build
from decodekit.compat.refusals import refuse_arguments
from decodekit.core.prompt import Prompt
from decodekit.engine.decode import decode, decode_steps
from decodekit.models.protocols import Model


def generate(  # noqa: PLR0913, PLR0917 - the signature of model.generate
    model: Any,  # a transformers model, or one wrapped in HFModel
    inputs: Int64[Tensor, "batch length"] | None = None,
    generation_config: Any = None,  # transformers' GenerationConfig
    logits_processor: Any = None,  # a list of processors of either library
    stopping_criteria: Any = None,  # a list of criteria of either library
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
    synced_gpus: bool | None = None,  # noqa: FBT001
    assistant_model: Any = None,
    streamer: Any = None,  # transformers' BaseStreamer
    negative_prompt_ids: Int64[Tensor, "batch negative"] | None = None,
    negative_prompt_attention_mask: Tensor | None = None,
    custom_generate: Any = None,
    **kwargs: Any,  # fields of GenerationConfig, and the model's inputs
) -> Any:
    """Return the result of `model.generate(...)` for the same arguments, decoded by decodekit.

    Supports greedy search, sampling, beam search and beam sampling, with every option of a `GenerationConfig`
    for scores and stopping. The prompt is computed once for all beams or samples. An error names an
    unsupported option.

    Args:
        model: A transformers model, decoder-only or encoder-decoder. A `dk.HFModel` is probed once, not in
            every call.
        inputs: The ids of the prompts, or the source of an encoder-decoder; also as `input_ids=`.
        generation_config: The configuration; None: the model's configuration.
        logits_processor: Processors of transformers or decodekit. Memory follows the beams.
        stopping_criteria: Stopping criteria of transformers or decodekit.
        prefix_allowed_tokens_fn: Function from the index of a prompt and a row's ids, without padding, to
            the allowed ids.
        synced_gpus: Refused if True.
        assistant_model: Refused.
        streamer: Receives the tokens, under beam search as soon as they are final.
        negative_prompt_ids: Negative prompts for guidance, one for each prompt.
        negative_prompt_attention_mask: The mask of the negative prompts.
        custom_generate: Refused.
        **kwargs: Fields of the configuration, `attention_mask`, `decoder_input_ids`, `cache`
            (`past_key_values`), `tokenizer`.

    Returns:
        Ids `[batch * sequences, length]`, or with `return_dict_in_generate` the same output class.

    Raises:
        DecodekitError: For an unsupported option, and for the errors of `decode`.

    Example:
        >>> bundled = dk.load()
        >>> ids = bundled.tokenizer("Once upon a", return_tensors="pt").input_ids
        >>> ours = dk.compat.hf.generate(bundled.model, ids, num_beams=3, max_new_tokens=5)
        >>> torch.equal(ours, bundled.model.generate(ids, num_beams=3, max_new_tokens=5))
        True

    Hugging Face:
        `GenerationMixin.generate`; the equivalence page lists the differences.
    """
    refuse_arguments(
        {
            "synced_gpus": synced_gpus or None,
            "assistant_model": assistant_model,
            "custom_generate": custom_generate,
        }
        | {name: kwargs.pop(name, None) for name in ("assistant_tokenizer", "trust_remote_code")},
        "Use model.generate.",
    )
    wrapped = wrap(model)
    tokenizer = kwargs.pop("tokenizer", None)
    config, given = merge_config(wrapped.model, generation_config, kwargs)
    prompt, model = read_inputs(wrapped, config, inputs, given)
    recipe = build(
        Setting(
            config=config,
            end_ids=config.eos_token_id,
            prompt_length=prompt.tokens.shape[1],
            model=wrapped,
            negative_prompts=with_mask(negative_prompt_ids, negative_prompt_attention_mask),
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
        ),
        config.eos_token_id,
        tokenizer,
        logits_processor or (),
        stopping_criteria or (),
    )
    return perform(model, prompt, recipe, config, streamer)


def perform(model: Model, prompt: Prompt, recipe: Recipe, config: Any, streamer: Any = None) -> Any:
    """Run a recipe, and return the result of `generate`."""
    if streamer is None and not config.return_dict_in_generate:
        return decode(model, prompt, **recipe.arguments()).sequences
    recorder = OutputRecorder(config)
    feed = None if streamer is None else Feed(streamer, recipe.decoder, prompt)
    steps = decode_steps(model, prompt, **recipe.arguments())
    while True:
        try:
            snapshot = next(steps)
        except StopIteration as finished:
            result = finished.value
            break
        recorder.see(snapshot)
        if feed is not None:
            feed.step(snapshot)
    if feed is not None:
        feed.end(result)
    return recorder.output(recipe.decoder, result, encoder_decoder=prompt.source is not None)
