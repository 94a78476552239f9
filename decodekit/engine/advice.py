"""Errors for wrong arguments, with the name of the right one."""

from collections.abc import Iterable, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any, NoReturn

from decodekit.core.stopping_criterion import StoppingCriterion
from decodekit.core.validation import closest, is_of_transformers, refuse_option, shown
from decodekit.decoders.base import Decoder
from decodekit.errors import DecodekitError
from decodekit.models.hf.model import model_advice
from decodekit.processors.base import LogitsProcessor

# Names of transformers with their equivalents here, except where only an ending differs.
ELSEWHERE_NAMES = {
    "AutoModelForCausalLM": "Use dk.load(name), or dk.HFModel(model, tokenizer).",
    "AutoModelForSeq2SeqLM": "Use dk.load(name), or dk.HFModel(model, tokenizer).",
    "AutoTokenizer": "Use dk.load(name), which loads the tokenizer too.",
    "BeamSearchScorer": "Use BeamSearch.",
    "EosTokenCriteria": "Use EndIds.",
    "EpsilonLogitsWarper": "Use EpsilonCutoff.",
    "EtaLogitsWarper": "Use EtaCutoff.",
    "ExponentialDecayLengthPenalty": "Use ExponentialLengthDecay.",
    "FromHF": "Use dk.compat.hf.FromHF.",
    "GenerationConfig": "Use dk.compat.hf.from_generation_config(config).",
    "HammingDiversityLogitsProcessor": "Use DiverseBeamSearch(..., diversity=Hamming(strength)).",
    "InfNanRemoveLogitsProcessor": "Use SanitizeScores.",
    "LogitNormalization": "Use Renormalize.",
    "LogitsProcessorList": "Use Chain, or a list.",
    "MaxLengthCriteria": "Use MaxNewTokens.",
    "MinNewTokensLengthLogitsProcessor": "Use MinNewTokens.",
    "NoBadWordsLogitsProcessor": "Use BadWords.",
    "PhrasalConstraint": "Use Phrase.",
    "DisjunctiveConstraint": "Use OneOf.",
    "PrefixConstrainedLogitsProcessor": "Use PrefixConstraint.",
    "StoppingCriteriaList": "Use AnyOf, or a list.",
    "SynthIDTextWatermarkLogitsProcessor": "Use SynthID.",
    "TextIteratorStreamer": "Use stream.",
    "TextStreamer": "Use stream.",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": "Use ClassifierFreeGuidance.",
    "from_generation_config": "Use dk.compat.hf.from_generation_config(config).",
    "generate": "Use dk.decode, or dk.compat.hf.generate with the arguments of transformers.",
    "pipeline": "Use dk.decode(dk.load(name), prompts, decoder, max_new_tokens=...).",
}
ENDINGS = ("TokenLogitsProcessor", "LogitsProcessor", "LogitsWarper", "StoppingCriteria", "Criteria")
# Arguments of transformers' `generate`, with their equivalents here.
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
_OF_TRANSFORMERS = {
    "GenerationConfig": "Use dk.compat.hf.from_generation_config(config) or dk.compat.hf.generate(...)",
    "LogitsProcessor": "Wrap it in dk.compat.hf.FromHF and pass it as processor",
    "StoppingCriteria": "Wrap it in dk.compat.hf.FromHF and pass it as stop=",
}
_PLACES: list[tuple[type, str, str]] = [
    (LogitsProcessor, "a processor", "processor"),
    (StoppingCriterion, "a stopping criterion", "stop="),
    (Decoder, "a decoder", "decoder"),
]


def missing_name(name: str, names: Iterable[str]) -> str:
    """The message for a public name that does not exist."""
    names = list(names)
    stem = next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)
    meant = stem if stem in names else closest(stem, names)
    other = f"Did you mean {meant}?" if meant else "dir(decodekit) lists its names."
    return f"module 'decodekit' has no attribute {name!r}. {ELSEWHERE_NAMES.get(name, other)}"


def refuse_options(
    who: str, given: Mapping[str, Any], allowed: Iterable[str], required: Iterable[str]
) -> NoReturn:
    """Raise a TypeError that suggests the closest option."""
    allowed = set(allowed)
    for name in given:
        if name not in allowed:
            meant = closest(name, [*allowed, *ELSEWHERE])
            refuse_option(who, name, sorted(allowed), ELSEWHERE.get(meant) if meant else None)
    missing = sorted(set(required) - given.keys())
    raise TypeError(
        f"{who}: {', '.join(missing)} must be given. Pass {missing[0]}=, an integer of at least 1."
    )


def refuse_custom_loop(decoder: object) -> NoReturn:
    """Raise a TypeError for options that require a `Decoder`."""
    raise TypeError(
        f"decode: {type(decoder).__name__} runs its own loop without regular steps: no trace, no "
        "check_every, no capture, no batch_tokens, no progress, no streaming, no generate(). Use "
        "dk.decode(...) without them."
    )


def wrong_model(model: object) -> Exception:
    """The error for a model of another kind."""
    advice = model_advice(model) or "Use dk.load(name) or dk.HFModel(model, tokenizer)."
    return DecodekitError(
        f"decode: model must be a Model or a transformers model, got {shown(model)}. {advice}"
    )


def wrong_decoder(decoder: object) -> Exception:
    """The error for a decoder of another kind."""
    from decodekit.decoders.custom_loop import CustomLoop  # noqa: PLC0415 - for the error only

    if isinstance(decoder, CustomLoop):
        refuse_custom_loop(decoder)
    must_hold = "decoder must be a Decoder such as dk.Greedy() or dk.BeamSearch(5)"
    return _wrong(must_hold, decoder, _advice(decoder, "Pass an object such as dk.Greedy()"))


def wrong_processor(processor: object) -> Exception:
    """The error for a processor, or an item of a sequence of processors, of another kind."""
    advice = "Pass objects such as dk.TopP(0.9), in a list if several"
    several = list(processor) if isinstance(processor, list | tuple) else [processor]
    wrong = next((one for one in several if not isinstance(one, LogitsProcessor)), processor)
    if isinstance(wrong, FunctionType | MethodType | partial):
        advice = "Derive from dk.StatelessProcessor, or pass dk.compat.hf.FromHF(function)"
    must_hold = "processor must be a LogitsProcessor or a sequence of them"
    return _wrong(must_hold, processor, _advice(wrong, advice))


def wrong_criterion(criterion: object) -> Exception:
    """The error for a stopping criterion of another kind."""
    advice = "Pass objects such as dk.MaxTime(5.0), or strings"
    if isinstance(criterion, FunctionType | MethodType | partial):
        advice = "Use dk.StopWhen(function)"
    must_hold = "stop must be a StoppingCriterion, a string, or a sequence of them"
    return _wrong(must_hold, criterion, _advice(criterion, advice))


def _wrong(must_hold: str, given: object, advice: str) -> TypeError:
    return TypeError(f"decode: {must_hold}, got {shown(given)}. {advice}.")


def _advice(given: object, otherwise: str) -> str:
    """Advice on a part of transformers, or on a part passed as the wrong argument."""
    if isinstance(given, type):
        return f"Pass an object: {given.__name__}(...)"
    for name, advice in _OF_TRANSFORMERS.items():
        if is_of_transformers(given, name):
            return advice
    for kind, words, place in _PLACES:
        if isinstance(given, kind):
            return f"{type(given).__name__} is {words}. Pass it as {place}"
    return _advice(given[0], otherwise) if isinstance(given, list | tuple) and given else otherwise
