"""Composable, batched decoding algorithms for language models."""

from decodekit.decoders.base import Decoder as Decoder
from decodekit.limits import Limits as Limits
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
from decodekit.load import bundled_path as bundled_path
from decodekit.load import load as load
from decodekit.loop import decode as decode
from decodekit.model import Model as Model
from decodekit.model import Session as Session
from decodekit.models.hf import HFModel as HFModel
from decodekit.output import Decoded as Decoded
from decodekit.processors.base import LogitsProcessor as LogitsProcessor
from decodekit.processors.base import StatelessProcessor as StatelessProcessor
from decodekit.processors.chain import Chain as Chain
from decodekit.processors.min_new_tokens import MinNewTokens as MinNewTokens
from decodekit.processors.min_p import MinP as MinP
from decodekit.processors.no_repeat_ngram import NoRepeatNGram as NoRepeatNGram
from decodekit.processors.repetition_penalty import RepetitionPenalty as RepetitionPenalty
from decodekit.processors.suppress_tokens import SuppressTokens as SuppressTokens
from decodekit.processors.temperature import Temperature as Temperature
from decodekit.processors.top_k import TopK as TopK
from decodekit.processors.top_p import TopP as TopP
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
from decodekit.trace import Trace as Trace
from decodekit.vocabulary import Vocabulary as Vocabulary


def __getattr__(name: str) -> object:
    # `dk.testing` without a second import statement; it needs hypothesis, so not before it is asked for.
    if name == "testing":
        from importlib import import_module  # noqa: PLC0415

        return import_module("decodekit.testing")
    raise AttributeError(f"module 'decodekit' has no attribute {name!r}")
