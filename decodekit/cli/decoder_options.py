"""From options to a decoder and its processors; what would be ignored is refused."""

from collections.abc import Callable
from typing import Any

import typer

import decodekit as dk
from decodekit.cli.errors import UsageError
from decodekit.cli.options import DecoderName, StopRuleName

_SAMPLE = (DecoderName.SAMPLE,)
_BEAM = (DecoderName.BEAM,)
_NOT_GREEDY = _SAMPLE + _BEAM  # the likeliest token is the likeliest at any temperature, and never cut off

_BELONGS_TO = {
    "num_samples": _SAMPLE,
    "seed": _SAMPLE,
    "beams": _BEAM,
    "length_penalty": _BEAM,
    "stop_rule": _BEAM,
    "patience": _BEAM,
    "num_return": _BEAM,
    "temperature": _NOT_GREEDY,
    "top_k": _NOT_GREEDY,
    "top_p": _NOT_GREEDY,
    "min_p": _NOT_GREEDY,
}

_STOP_RULES = {
    StopRuleName.WHEN_FULL: dk.WhenFull(),
    StopRuleName.HEURISTIC: dk.Heuristic(),
    StopRuleName.PROVED: dk.Proved(),
}


def refuse_ignored(context: typer.Context) -> None:
    """Raises if an option of `generate` would change nothing, or two contradict each other."""
    values = context.params
    decoder, given = values["decoder"], {name for name in values if _is_given(context, name)}
    for name, decoders in _BELONGS_TO.items():
        if name in given and decoder not in decoders:
            raise UsageError(
                f"--{name.replace('_', '-')} would be ignored by --decoder {decoder}. "
                f"It goes with --decoder {' or '.join(decoders)}."
            )
    if decoder == DecoderName.BEAM and "temperature" in given and not given & {"top_p", "min_p"}:
        raise UsageError(
            "--temperature would be ignored by --decoder beam: it scales the scores of all hypotheses "
            "alike. It goes with --decoder sample, or with --top-p or --min-p."
        )
    if {"stop_rule", "patience"} <= given:
        raise UsageError("--stop-rule and --patience are two rules for the same thing. Give one of them.")
    if "min_new_tokens" in given and values["min_new_tokens"] > values["max_new_tokens"]:
        raise UsageError(
            f"--min-new-tokens must be at most --max-new-tokens, got {values['min_new_tokens']} and "
            f"{values['max_new_tokens']}."
        )


def beam_search(
    beams: int, length_penalty: float, stop_rule: StopRuleName, patience: float | None, num_return: int
) -> dk.BeamSearch:
    """Beam search under the stop rule, or with patience instead."""
    return dk.BeamSearch(
        beams,
        scorer=dk.LengthPenalty(length_penalty),
        stop_rule=_STOP_RULES[stop_rule] if patience is None else dk.Patience(patience),
        num_return=num_return,
    )


def built(*pairs: tuple[Callable[[Any], dk.LogitsProcessor], Any]) -> list[dk.LogitsProcessor]:
    """Each class with its value, where there is one."""
    return [make(value) for make, value in pairs if value is not None]


def not_ending(model: dk.HFModel, min_new_tokens: int | None) -> list[dk.LogitsProcessor]:
    """The ban on the model's own end ids, as `dk.decode` knows them, if it is asked for."""
    if min_new_tokens is None:
        return []
    vocabulary = model.vocabulary
    end_ids = [end for end in vocabulary.end_ids if vocabulary.size is None or end < vocabulary.size]
    if not end_ids:
        raise UsageError("--min-new-tokens would be ignored: the model has no end id.")
    return [dk.MinNewTokens(min_new_tokens, end_ids)]


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
