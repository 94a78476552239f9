"""Composable, batched decoding algorithms for language models."""

from decodekit.decoders.base import Decoder as Decoder
from decodekit.decoders.base import Selection as Selection
from decodekit.decoders.beam_search import BeamSearch as BeamSearch
from decodekit.decoders.greedy import Greedy as Greedy
from decodekit.decoders.rows import RowState as RowState
from decodekit.decoders.sample import Sample as Sample
from decodekit.decoders.stop_rule import Heuristic as Heuristic
from decodekit.decoders.stop_rule import Patience as Patience
from decodekit.decoders.stop_rule import Proved as Proved
from decodekit.decoders.stop_rule import Standing as Standing
from decodekit.decoders.stop_rule import StopRule as StopRule
from decodekit.decoders.stop_rule import WhenFull as WhenFull
from decodekit.errors import DecodekitError as DecodekitError
from decodekit.errors import DecodingError as DecodingError
from decodekit.errors import ModelError as ModelError
from decodekit.errors import PromptError as PromptError
from decodekit.history import History as History
from decodekit.limits import Limits as Limits
from decodekit.load import bundled_path as bundled_path
from decodekit.load import load as load
from decodekit.loop import decode as decode
from decodekit.model import Model as Model
from decodekit.model import Session as Session
from decodekit.models.hf import HFModel as HFModel
from decodekit.output import Decoded as Decoded
from decodekit.processors.bad_words import BadWords as BadWords
from decodekit.processors.base import LogitsProcessor as LogitsProcessor
from decodekit.processors.base import StatelessProcessor as StatelessProcessor
from decodekit.processors.chain import Chain as Chain
from decodekit.processors.classifier_free_guidance import ClassifierFreeGuidance as ClassifierFreeGuidance
from decodekit.processors.context_aware import ContextAware as ContextAware
from decodekit.processors.contrastive_guidance import ContrastiveGuidance as ContrastiveGuidance
from decodekit.processors.dexperts import DExperts as DExperts
from decodekit.processors.dry import DRY as DRY
from decodekit.processors.dynamic_temperature import DynamicTemperature as DynamicTemperature
from decodekit.processors.encoder_no_repeat_ngram import EncoderNoRepeatNGram as EncoderNoRepeatNGram
from decodekit.processors.encoder_repetition_penalty import (
    EncoderRepetitionPenalty as EncoderRepetitionPenalty,
)
from decodekit.processors.ensemble import Ensemble as Ensemble
from decodekit.processors.epsilon_cutoff import EpsilonCutoff as EpsilonCutoff
from decodekit.processors.eta_cutoff import EtaCutoff as EtaCutoff
from decodekit.processors.exponential_length_decay import ExponentialLengthDecay as ExponentialLengthDecay
from decodekit.processors.forced_bos import ForcedBOS as ForcedBOS
from decodekit.processors.forced_eos import ForcedEOS as ForcedEOS
from decodekit.processors.frequency_penalty import FrequencyPenalty as FrequencyPenalty
from decodekit.processors.grammar import Grammar as Grammar
from decodekit.processors.min_length import MinLength as MinLength
from decodekit.processors.min_new_tokens import MinNewTokens as MinNewTokens
from decodekit.processors.min_p import MinP as MinP
from decodekit.processors.mirostat_v1 import MirostatV1 as MirostatV1
from decodekit.processors.mirostat_v2 import MirostatV2 as MirostatV2
from decodekit.processors.no_repeat_ngram import NoRepeatNGram as NoRepeatNGram
from decodekit.processors.pmi import PMI as PMI
from decodekit.processors.prefix_constraint import PrefixConstraint as PrefixConstraint
from decodekit.processors.presence_penalty import PresencePenalty as PresencePenalty
from decodekit.processors.quadratic_smoothing import QuadraticSmoothing as QuadraticSmoothing
from decodekit.processors.renormalize import Renormalize as Renormalize
from decodekit.processors.repetition_penalty import RepetitionPenalty as RepetitionPenalty
from decodekit.processors.sanitize_scores import SanitizeScores as SanitizeScores
from decodekit.processors.sequence_bias import SequenceBias as SequenceBias
from decodekit.processors.shallow_fusion import ShallowFusion as ShallowFusion
from decodekit.processors.suppress_tokens import SuppressTokens as SuppressTokens
from decodekit.processors.suppress_tokens_at_begin import SuppressTokensAtBegin as SuppressTokensAtBegin
from decodekit.processors.synthid import SynthID as SynthID
from decodekit.processors.synthid_detector import SynthIDDetector as SynthIDDetector
from decodekit.processors.tail_free import TailFree as TailFree
from decodekit.processors.temperature import Temperature as Temperature
from decodekit.processors.token_healing import TokenHealing as TokenHealing
from decodekit.processors.token_healing import heal as heal
from decodekit.processors.top_a import TopA as TopA
from decodekit.processors.top_h import TopH as TopH
from decodekit.processors.top_k import TopK as TopK
from decodekit.processors.top_n_sigma import TopNSigma as TopNSigma
from decodekit.processors.top_p import TopP as TopP
from decodekit.processors.trie_constraint import TrieConstraint as TrieConstraint
from decodekit.processors.typical import Typical as Typical
from decodekit.processors.watermark import Watermark as Watermark
from decodekit.processors.watermark_detector import WatermarkDetector as WatermarkDetector
from decodekit.processors.xtc import XTC as XTC
from decodekit.prompt import Prompt as Prompt
from decodekit.score import Scored as Scored
from decodekit.score import score as score
from decodekit.scorers.base import Scorer as Scorer
from decodekit.scorers.length_penalty import LengthPenalty as LengthPenalty
from decodekit.scorers.log_prob import LogProb as LogProb
from decodekit.stopping.all_of import AllOf as AllOf
from decodekit.stopping.any_of import AnyOf as AnyOf
from decodekit.stopping.base import Run as Run
from decodekit.stopping.base import StoppingCriterion as StoppingCriterion
from decodekit.stopping.confidence import Confidence as Confidence
from decodekit.stopping.end_ids import EndIds as EndIds
from decodekit.stopping.max_new_tokens import MaxNewTokens as MaxNewTokens
from decodekit.stopping.max_time import MaxTime as MaxTime
from decodekit.stopping.repetition_loop import RepetitionLoop as RepetitionLoop
from decodekit.stopping.stop_strings import StopStrings as StopStrings
from decodekit.stopping.stop_when import StopWhen as StopWhen
from decodekit.stream import Piece as Piece
from decodekit.stream import Stream as Stream
from decodekit.stream import stream as stream
from decodekit.trace import Trace as Trace
from decodekit.vocabulary import Vocabulary as Vocabulary


def __getattr__(name: str) -> object:
    # `dk.testing` and `dk.compat` without a second import statement, but not before they are asked for: the
    # first needs hypothesis, the second is not needed by those who stay here.
    if name in {"compat", "testing"}:
        from importlib import import_module  # noqa: PLC0415

        return import_module(f"decodekit.{name}")
    raise AttributeError(f"module 'decodekit' has no attribute {name!r}")
