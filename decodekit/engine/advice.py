"""Errors for wrong arguments, with the name of the right one."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn

from decodekit.errors import DecodekitError

# Arguments of transformers' `generate`, with their place here.
ELSEWHERE = {
    "max_length": "Use max_new_tokens=, which counts new tokens only.",
    "min_length": "Use the processor MinLength.",
    "min_new_tokens": "Use the processor MinNewTokens.",
    "num_beams": "Use the decoder BeamSearch(num_beams).",
    "num_beam_groups": "Use the decoder DiverseBeamSearch.",
    "num_return_sequences": "Use BeamSearch(..., num_return=) or Sample(num_samples).",
    "do_sample": "Use the decoder Sample().",
    "temperature": "Use the processor Temperature.",
    "top_k": "Use the processor TopK.",
    "top_p": "Use the processor TopP.",
    "min_p": "Use the processor MinP.",
    "typical_p": "Use the processor Typical.",
    "repetition_penalty": "Use the processor RepetitionPenalty.",
    "no_repeat_ngram_size": "Use the processor NoRepeatNGram.",
    "length_penalty": "Use BeamSearch(..., scorer=LengthPenalty(alpha)).",
    "early_stopping": "Use BeamSearch(..., stop_rule=WhenFull()) for True, Heuristic() for False.",
    "eos_token_id": "Use end_ids=.",
    "pad_token_id": "Use pad_id=.",
    "stop_strings": "Use stop=.",
    "stopping_criteria": "Use stop=, with FromHF(criterion) for those of transformers.",
    "logits_processor": "Pass it as processor, FromHF(processor) for those of transformers.",
    "generation_config": "Use dk.compat.hf.from_generation_config, or dk.compat.hf.generate.",
    "streamer": "Use dk.stream.",
    "seed": "Use Sample(seeds=[...]), one per prompt, or Sample(generator=...).",
    "attention_mask": "Pass the prompts as (tokens, mask).",
    "input_ids": "Pass the ids as prompts, in second place.",
    "tokenizer": "Use HFModel(model, tokenizer).",
    "output_scores": "Use trace=, or the token_log_probs of the result.",
}
_FROM_HF = "Wrap it in dk.compat.hf.FromHF"
_CONFIG = "Use dk.compat.hf.from_generation_config(config), or dk.compat.hf.generate(model, ...)"


def refuse_options(
    who: str, given: Mapping[str, Any], allowed: Iterable[str], required: Iterable[str]
) -> NoReturn:
    """Raise a TypeError that names the option that was meant."""
    allowed = set(allowed)
    for name in given:
        if name not in allowed:
            close = get_close_matches(name, allowed, n=1)
            meant = f"Did you mean {close[0]}=?" if close else f"It has {', '.join(sorted(allowed))}."
            raise TypeError(f"{who}: {name} is not an option. {ELSEWHERE.get(name, meant)}")
    missing = sorted(set(required) - given.keys())
    raise TypeError(
        f"{who}: {', '.join(missing)} must be given. Pass {missing[0]}=, an integer of at least 1."
    )


def refuse_custom_loop(decoder: object) -> NoReturn:
    """Raise a TypeError for options that need a decoder that goes step by step."""
    raise TypeError(
        f"decode: {type(decoder).__name__} has a loop of its own, which has no steps to watch: no trace, no "
        "check_every, no capture, no batch_tokens, no progress, no streaming, no generate(). Use "
        "dk.decode(...) without them."
    )


def wrong_model(model: object) -> Exception:
    """The error for a model of another kind."""
    advice = "Use dk.load(name) or dk.HFModel(model, tokenizer)"
    return DecodekitError(
        f"decode: model must be a Model or a transformers model, got {model!r:.80}. {advice}."
    )


def wrong_decoder(decoder: object) -> Exception:
    """The error for a decoder of another kind."""
    from decodekit.decoders.custom_loop import CustomLoop  # noqa: PLC0415 - for the error only

    if isinstance(decoder, CustomLoop):
        refuse_custom_loop(decoder)
    advice = "Pass an object such as dk.Greedy()"
    if isinstance(decoder, type):
        advice = f"Pass an object: {decoder.__name__}(...)"
    elif _is_of_transformers(decoder, "GenerationConfig"):
        advice = _CONFIG
    return _wrong("decoder must be a Decoder such as dk.Greedy() or dk.BeamSearch(5)", decoder, advice)


def wrong_processor(processor: object) -> Exception:
    """The error for a processor of another kind."""
    return _wrong(
        "processor must be a LogitsProcessor or a sequence of them", processor, _hf_advice(processor)
    )


def wrong_criterion(criterion: object) -> Exception:
    """The error for a stopping criterion of another kind."""
    return _wrong(
        "stop must be a StoppingCriterion, a string, or a sequence of them", criterion, _hf_advice(criterion)
    )


def _wrong(must_hold: str, given: object, advice: str) -> TypeError:
    return TypeError(f"decode: {must_hold}, got {given!r:.80}. {advice}.")


def _hf_advice(given: object) -> str:
    several = list(given) if isinstance(given, list | tuple) else [given]
    if any(_is_of_transformers(one, "GenerationConfig") for one in several):
        return _CONFIG
    if any(_is_of_transformers(one, "") for one in several):
        return _FROM_HF
    return "See the reference of processors and stopping criteria"


def _is_of_transformers(given: object, name: str) -> bool:
    return any(
        kind.__module__.split(".")[0] == "transformers" and kind.__name__.startswith(name)
        for kind in type(given).__mro__
    )
