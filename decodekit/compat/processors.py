"""The processors of a GenerationConfig, in the order in which `generate` applies them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from decodekit.compat.inputs import NEW_TOKENS
from decodekit.errors import DecodekitError
from decodekit.models.protocols import Model
from decodekit.processors.bad_words import BadWords
from decodekit.processors.classifier_free_guidance import ClassifierFreeGuidance
from decodekit.processors.encoder_no_repeat_ngram import EncoderNoRepeatNGram
from decodekit.processors.encoder_repetition_penalty import EncoderRepetitionPenalty
from decodekit.processors.epsilon_cutoff import EpsilonCutoff
from decodekit.processors.eta_cutoff import EtaCutoff
from decodekit.processors.exponential_length_decay import ExponentialLengthDecay
from decodekit.processors.forced_bos import ForcedBOS
from decodekit.processors.forced_eos import ForcedEOS
from decodekit.processors.min_new_tokens import MinNewTokens
from decodekit.processors.min_p import MinP
from decodekit.processors.no_repeat_ngram import NoRepeatNGram
from decodekit.processors.prefix_constraint import PrefixConstraint
from decodekit.processors.renormalize import Renormalize
from decodekit.processors.repetition_penalty import RepetitionPenalty
from decodekit.processors.sanitize_scores import SanitizeScores
from decodekit.processors.sequence_bias import SequenceBias
from decodekit.processors.suppress_tokens import SuppressTokens
from decodekit.processors.suppress_tokens_at_begin import SuppressTokensAtBegin
from decodekit.processors.synthid import SynthID
from decodekit.processors.temperature import Temperature
from decodekit.processors.top_h import TopH
from decodekit.processors.top_k import TopK
from decodekit.processors.top_p import TopP
from decodekit.processors.typical import Typical
from decodekit.processors.watermark import Watermark

# A part, with the name of the equivalent class of transformers.
Named = tuple[str, Any]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A configuration and its context; unknown ids and lengths are None."""

    config: Any
    end_ids: tuple[int, ...] | None
    prompt_length: int | None = None
    model: Model | None = None
    negative_prompts: Any = None  # each prompt's last token
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None

    @property
    def max_new_tokens(self) -> int:
        """Maximum number of new tokens."""
        config = self.config
        if config.max_new_tokens is not None:
            return int(config.max_new_tokens)
        if config.max_length is None:
            return NEW_TOKENS
        return int(config.max_length) - self.columns("max_length")

    def columns(self, option: str) -> int:
        """Columns of the prompts, for an option that counts them."""
        if self.prompt_length is None:
            raise DecodekitError(
                f"from_generation_config: {option} counts the prompt, whose length is unknown. Pass "
                "prompt_length=, or use the option that counts new tokens."
            )
        return self.prompt_length

    def ends(self, option: str) -> tuple[int, ...]:
        """The end ids, for an option that needs them."""
        if self.end_ids is None:
            raise DecodekitError(
                f"from_generation_config: {option} needs end ids, and neither the configuration nor "
                "model= has any. Set eos_token_id, or pass model=."
            )
        return self.end_ids


def penalties_and_constraints(setting: Setting) -> list[Named]:
    """The processors before those of the caller."""
    return [*_guidance_and_repetition(setting), *_ends_and_lengths(setting), *_forced_and_suppressed(setting)]


def _guidance_and_repetition(setting: Setting) -> Iterator[Named]:
    config = setting.config
    if config.guidance_scale not in {None, 1}:
        if setting.model is None:
            raise DecodekitError("from_generation_config: guidance_scale needs the model. Pass model=.")
        guidance = ClassifierFreeGuidance(setting.model, config.guidance_scale, setting.negative_prompts)
        yield "UnbatchedClassifierFreeGuidanceLogitsProcessor", guidance
    if config.sequence_bias is not None:
        yield "SequenceBiasLogitsProcessor", SequenceBias(config.sequence_bias)
    if config.encoder_repetition_penalty not in {None, 1.0}:
        penalty = EncoderRepetitionPenalty(config.encoder_repetition_penalty)
        yield "EncoderRepetitionPenaltyLogitsProcessor", penalty
    if config.repetition_penalty not in {None, 1.0}:
        yield "RepetitionPenaltyLogitsProcessor", RepetitionPenalty(config.repetition_penalty)
    if config.no_repeat_ngram_size:
        yield "NoRepeatNGramLogitsProcessor", NoRepeatNGram(config.no_repeat_ngram_size)
    if config.encoder_no_repeat_ngram_size:
        blocked = EncoderNoRepeatNGram(config.encoder_no_repeat_ngram_size)
        yield "EncoderNoRepeatNGramLogitsProcessor", blocked


def _ends_and_lengths(setting: Setting) -> Iterator[Named]:
    config = setting.config
    if config.bad_words_ids is not None:
        yield "NoBadWordsLogitsProcessor", BadWords(config.bad_words_ids, setting.end_ids or ())
    if config.min_new_tokens is None and config.min_length and setting.ends("min_length"):
        least = max(config.min_length - setting.columns("min_length"), 0)
        yield "MinLengthLogitsProcessor", MinNewTokens(least, setting.ends("min_length"))
    if config.min_new_tokens and setting.ends("min_new_tokens"):
        least = config.min_new_tokens
        yield "MinNewTokensLengthLogitsProcessor", MinNewTokens(least, setting.ends("min_new_tokens"))
    if setting.prefix_allowed_tokens_fn is not None:
        yield "PrefixConstrainedLogitsProcessor", PrefixConstraint(setting.prefix_allowed_tokens_fn)


def _forced_and_suppressed(setting: Setting) -> Iterator[Named]:
    config = setting.config
    # It forces the second token of a sequence, after the start token of a decoder.
    if config.forced_bos_token_id is not None and setting.prompt_length in {None, 1}:
        yield "ForcedBOSTokenLogitsProcessor", ForcedBOS(config.forced_bos_token_id)
    if config.forced_eos_token_id is not None:
        forced = ForcedEOS(setting.max_new_tokens, config.forced_eos_token_id)
        yield "ForcedEOSTokenLogitsProcessor", forced
    if config.remove_invalid_values:
        yield "InfNanRemoveLogitsProcessor", SanitizeScores(unban=True)
    if config.exponential_decay_length_penalty is not None:
        start, factor = config.exponential_decay_length_penalty
        decay = ExponentialLengthDecay(start, factor, setting.ends("exponential_decay_length_penalty"))
        yield "ExponentialDecayLengthPenalty", decay
    if config.suppress_tokens is not None:
        yield "SuppressTokensLogitsProcessor", SuppressTokens(config.suppress_tokens)
    if config.begin_suppress_tokens is not None:
        # After a forced first token, the text begins at the second token.
        forced_first = config.forced_bos_token_id is not None and (setting.prompt_length or 0) <= 1
        suppressed = SuppressTokensAtBegin(config.begin_suppress_tokens, begin=int(forced_first))
        yield "SuppressTokensAtBeginLogitsProcessor", suppressed


def warpers(setting: Setting) -> Iterator[Named]:
    """The processors that shape the distribution to sample from."""
    config = setting.config
    if not config.do_sample:
        return
    # After truncation each beam still needs a token that is not an end id.
    beams = (config.num_beams or 1) > 1
    keep = (len(setting.end_ids or ()) + 1 if setting.end_ids else 2) if beams else 1
    if config.temperature not in {None, 1.0}:
        yield "TemperatureLogitsWarper", Temperature(config.temperature)
    yield from _likeliest(config, keep)
    if config.typical_p is not None and config.typical_p < 1:
        yield "TypicalLogitsWarper", Typical(config.typical_p, min_tokens_to_keep=keep)
    if config.epsilon_cutoff is not None and 0 < config.epsilon_cutoff < 1:
        yield "EpsilonLogitsWarper", EpsilonCutoff(config.epsilon_cutoff, min_tokens_to_keep=keep)
    if config.eta_cutoff is not None and 0 < config.eta_cutoff < 1:
        yield "EtaLogitsWarper", EtaCutoff(config.eta_cutoff, min_tokens_to_keep=keep)


def _likeliest(config: Any, keep: int) -> Iterator[Named]:
    """The truncations to the likeliest tokens."""
    if config.top_h is not None:
        yield "TopHLogitsWarper", TopH(config.top_h)
    if config.top_k:
        yield "TopKLogitsWarper", TopK(config.top_k, min_tokens_to_keep=keep)
    if config.top_p is not None and config.top_p < 1:
        yield "TopPLogitsWarper", TopP(config.top_p, min_tokens_to_keep=keep)
    if config.min_p:
        yield "MinPLogitsWarper", MinP(config.min_p, min_tokens_to_keep=keep)


def last(setting: Setting) -> Iterator[Named]:
    """The last processors."""
    config = setting.config
    marked = config.watermarking_config
    if marked is not None and hasattr(marked, "greenlist_ratio"):
        names = ("greenlist_ratio", "bias", "hashing_key", "seeding_scheme", "context_width")
        yield "WatermarkLogitsProcessor", Watermark(**{name: getattr(marked, name) for name in names})
    elif marked is not None:
        names = ("ngram_len", "keys", "sampling_table_size", "sampling_table_seed", "context_history_size")
        options = {name: getattr(marked, name) for name in (*names, "skip_first_ngram_calls")}
        yield "SynthIDTextWatermarkLogitsProcessor", SynthID(**options)
    if config.renormalize_logits:
        yield "LogitNormalization", Renormalize()
