"""Pairs of equal processors of decodekit and transformers, for `processors.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import transformers.generation.logits_process as hf
from jaxtyping import Float32, Int64
from processor_setting import Setting
from torch import Tensor

import decodekit as dk


@dataclass(frozen=True)
class Case:
    """One configuration of a processor.

    Attributes:
        name: The class of decodekit with its arguments, and a note.
        ours: Creates the processor of decodekit.
        theirs: Creates the processor of transformers; None if there is none.
        equal: True if both must return the same scores.
        theirs_remembers: True if the processor of transformers must see every step.
        rows: Number of rows, if the usual number takes too much memory or time.
    """

    name: str
    ours: Callable[[Setting], dk.LogitsProcessor]
    theirs: Callable[[Setting], Any] | None = None
    equal: bool = True
    theirs_remembers: bool = False
    rows: int | None = None


class FreeModel:
    """A second model that takes no time, so that only the processor is measured."""

    def __init__(self, setting: Setting) -> None:
        self.logits = setting.scores.flip(0)

    def start(
        self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple["FreeModel", Float32[Tensor, "rows vocab"]]:
        """The same logits at every step."""
        del prompt, rows_per_prompt, capacity
        return self, self.logits

    def advance(
        self, tokens: Int64[Tensor, " rows"], source_rows: Int64[Tensor, " rows"] | None
    ) -> Float32[Tensor, "rows vocab"]:
        """The same logits at every step."""
        del tokens, source_rows
        return self.logits

    def __call__(self, input_ids: Int64[Tensor, "rows length"], **_: object) -> Any:  # noqa: ANN401
        """Called like a transformers model: the same logits at every position."""
        logits = self.logits[:, None].expand(-1, input_ids.shape[1], -1)
        return SimpleNamespace(logits=logits, get=lambda *_: None)


END = 0  # an end id
KEYS = tuple(range(1, 31))
SYNTHID = {
    "ngram_len": 5,
    "context_history_size": 1024,
    "sampling_table_size": 2**16,
    "sampling_table_seed": 0,
}


def words(setting: Setting) -> list[list[int]]:
    """A hundred bad words of one to three tokens."""
    return [word for length in (1, 2, 3) for word in setting.at(34, length)][:100]


def names(setting: Setting) -> list[list[int]]:
    """Sixteen strings per row: its new tokens, and one more token each."""
    said = setting.tokens[:, setting.prompt :].tolist()
    return [[*text, token] for text in said for token in range(1, 17)]


def walk(setting: Setting) -> Callable[[int, Int64[Tensor, " length"]], list[int]]:
    """For transformers, a function that looks up the tokens that continue one of the strings."""
    following: dict[tuple[int, ...], set[int]] = {}
    for text in names(setting):
        for length, token in enumerate(text):
            following.setdefault(tuple(text[:length]), set()).add(token)
    allowed = {text: sorted(tokens) for text, tokens in following.items()}
    return lambda _, ids: allowed.get(tuple(ids[setting.prompt :].tolist()), [END])


CASES = (
    # Truncation
    Case("TopK(50)", lambda _: dk.TopK(50), lambda _: hf.TopKLogitsWarper(50)),
    Case("TopP(0.9)", lambda _: dk.TopP(0.9), lambda _: hf.TopPLogitsWarper(0.9)),
    Case("MinP(0.05)", lambda _: dk.MinP(0.05), lambda _: hf.MinPLogitsWarper(0.05)),
    Case("Typical(0.9)", lambda _: dk.Typical(0.9), lambda _: hf.TypicalLogitsWarper(0.9)),
    Case("EpsilonCutoff(3e-4)", lambda _: dk.EpsilonCutoff(3e-4), lambda _: hf.EpsilonLogitsWarper(3e-4)),
    Case(
        "EtaCutoff(3e-4)",
        lambda _: dk.EtaCutoff(3e-4),
        lambda s: hf.EtaLogitsWarper(3e-4, device=str(s.scores.device)),
    ),
    Case("TopH(0.4)", lambda _: dk.TopH(0.4), lambda _: hf.TopHLogitsWarper(0.4)),
    Case("TopA(0.2)", lambda _: dk.TopA(0.2)),
    Case("TopNSigma(1.0)", lambda _: dk.TopNSigma(1.0)),
    Case("TailFree(0.95)", lambda _: dk.TailFree(0.95)),
    Case("MirostatV1(5.0)", lambda _: dk.MirostatV1(5.0)),
    Case("MirostatV2(5.0)", lambda _: dk.MirostatV2(5.0)),
    Case("XTC(0.1, 0.5, seeds)", lambda s: dk.XTC(0.1, 0.5, list(range(s.rows)))),
    # Temperature and shape
    Case("Temperature(0.7)", lambda _: dk.Temperature(0.7), lambda _: hf.TemperatureLogitsWarper(0.7)),
    Case("DynamicTemperature(0.5, 1.5)", lambda _: dk.DynamicTemperature(0.5, 1.5)),
    Case("QuadraticSmoothing(0.2)", lambda _: dk.QuadraticSmoothing(0.2)),
    Case("Renormalize()", lambda _: dk.Renormalize(), lambda _: hf.LogitNormalization()),
    Case(
        "SanitizeScores(unban=True)",
        lambda _: dk.SanitizeScores(unban=True),
        lambda _: hf.InfNanRemoveLogitsProcessor(),
    ),
    # Repetition
    Case(
        "RepetitionPenalty(1.2)",
        lambda _: dk.RepetitionPenalty(1.2),
        lambda _: hf.RepetitionPenaltyLogitsProcessor(1.2),
    ),
    Case(
        "EncoderRepetitionPenalty(1.2)",
        lambda _: dk.EncoderRepetitionPenalty(1.2),
        lambda s: hf.EncoderRepetitionPenaltyLogitsProcessor(1.2, s.source),
    ),
    Case("FrequencyPenalty(0.5)", lambda _: dk.FrequencyPenalty(0.5)),
    Case("PresencePenalty(0.5)", lambda _: dk.PresencePenalty(0.5)),
    Case("NoRepeatNGram(2)", lambda _: dk.NoRepeatNGram(2), lambda _: hf.NoRepeatNGramLogitsProcessor(2)),
    Case("NoRepeatNGram(4)", lambda _: dk.NoRepeatNGram(4), lambda _: hf.NoRepeatNGramLogitsProcessor(4)),
    Case(
        "EncoderNoRepeatNGram(2)",
        lambda _: dk.EncoderNoRepeatNGram(2),
        lambda s: hf.EncoderNoRepeatNGramLogitsProcessor(2, s.source),
    ),
    Case("DRY(0.8)", lambda _: dk.DRY(0.8)),
    # Length and forced tokens
    Case(
        "MinLength(999, end)",
        lambda _: dk.MinLength(999, END),
        lambda s: hf.MinLengthLogitsProcessor(999, END, device=s.scores.device),
    ),
    Case(
        "MinNewTokens(99, end)",
        lambda _: dk.MinNewTokens(99, END),
        lambda s: hf.MinNewTokensLengthLogitsProcessor(s.prompt, 99, END, device=s.scores.device),
    ),
    Case(
        "MinNewTokens(9, end), idle",
        lambda _: dk.MinNewTokens(9, END),
        lambda s: hf.MinNewTokensLengthLogitsProcessor(s.prompt, 9, END, device=s.scores.device),
    ),
    Case(
        "ForcedBOS(1), idle",
        lambda _: dk.ForcedBOS(1),
        lambda _: hf.ForcedBOSTokenLogitsProcessor(1),
    ),
    Case(
        "ForcedPrefix(99 ids)",
        lambda s: dk.ForcedPrefix([i for (i,) in s.at(99)]),
        None,
    ),
    Case(
        "ForcedEOS(17, end)",
        lambda s: dk.ForcedEOS(s.length - s.prompt + 1, END),
        lambda s: hf.ForcedEOSTokenLogitsProcessor(s.length + 1, END, device=s.scores.device),
    ),
    Case(
        "ForcedEOS(99, end), idle",
        lambda _: dk.ForcedEOS(99, END),
        lambda s: hf.ForcedEOSTokenLogitsProcessor(s.prompt + 99, END, device=s.scores.device),
    ),
    Case(
        "SuppressTokensAtBegin(100 ids), idle",
        lambda s: dk.SuppressTokensAtBegin([i for (i,) in s.at(100)]),
        lambda s: hf.SuppressTokensAtBeginLogitsProcessor(
            [i for (i,) in s.at(100)], s.prompt, device=s.scores.device
        ),
    ),
    Case(
        "ExponentialLengthDecay(9, 1.1, end)",
        lambda _: dk.ExponentialLengthDecay(9, 1.1, END),
        lambda s: hf.ExponentialDecayLengthPenalty((9, 1.1), END, s.prompt),
    ),
    # Constraints
    Case(
        "SuppressTokens(100 ids)",
        lambda s: dk.SuppressTokens([i for (i,) in s.at(100)]),
        lambda s: hf.SuppressTokensLogitsProcessor([i for (i,) in s.at(100)], device=s.scores.device),
    ),
    Case(
        "BadWords(100 words)",
        lambda s: dk.BadWords(words(s)),
        lambda s: hf.NoBadWordsLogitsProcessor(words(s)),
    ),
    Case(
        "SequenceBias(100 sequences)",
        lambda s: dk.SequenceBias([(word, 1.5) for word in words(s)]),
        lambda s: hf.SequenceBiasLogitsProcessor([[word, 1.5] for word in words(s)]),
    ),
    Case(
        "PrefixConstraint(function)",
        lambda _: dk.PrefixConstraint(lambda _, ids: [int(ids[-1]), *range(99)]),
        lambda _: hf.PrefixConstrainedLogitsProcessor(lambda _, ids: [int(ids[-1]), *range(99)], 1),
    ),
    Case(
        "TrieConstraint(1024 strings, end)",
        lambda s: dk.TrieConstraint(names(s), END),
        lambda s: hf.PrefixConstrainedLogitsProcessor(walk(s), 1),
    ),
    # Guidance by a second model, which takes no time here
    Case(
        "ClassifierFreeGuidance(model, 1.5)",
        lambda s: dk.ClassifierFreeGuidance(FreeModel(s), 1.5),
        lambda s: hf.UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, FreeModel(s)),
    ),
    Case("ContextAware(model, 0.5)", lambda s: dk.ContextAware(FreeModel(s), 0.5, [[1]])),
    Case("ContrastiveGuidance(model)", lambda s: dk.ContrastiveGuidance(FreeModel(s))),
    Case("DExperts(model, model, 2.0)", lambda s: dk.DExperts(FreeModel(s), FreeModel(s), 2.0)),
    Case("PMI(model, 0.5, 2.0)", lambda s: dk.PMI(FreeModel(s), 0.5, 2.0)),
    Case("ShallowFusion(model, 0.3)", lambda s: dk.ShallowFusion(FreeModel(s), 0.3)),
    Case("Ensemble(model)", lambda s: dk.Ensemble(FreeModel(s))),
    # Watermarks
    Case(
        "Watermark()",
        lambda _: dk.Watermark(),
        lambda s: hf.WatermarkLogitsProcessor(s.vocab, "cpu", 0.25, 2.0),
    ),
    Case(
        'Watermark(lists="hash")',
        lambda _: dk.Watermark(lists="hash"),
        lambda s: hf.WatermarkLogitsProcessor(s.vocab, "cpu", 0.25, 2.0),
        equal=False,
    ),
    Case(
        "SynthID(30 keys, 5)",
        lambda _: dk.SynthID(KEYS, 5),
        lambda s: hf.SynthIDTextWatermarkLogitsProcessor(keys=list(KEYS), device=s.scores.device, **SYNTHID),
        theirs_remembers=True,
        rows=8,
    ),
)
