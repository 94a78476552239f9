"""Toy models, slow references and laws, to test the classes of decodekit and your own.

Needs hypothesis: `pip install decodekit[testing]`.
"""

from decodekit.testing.capture_laws import check_captures as check_captures
from decodekit.testing.decoder_laws import check_decoder as check_decoder
from decodekit.testing.model_laws import check_model as check_model
from decodekit.testing.oracle import Hypothesis as Hypothesis
from decodekit.testing.oracle import beam_search as beam_search
from decodekit.testing.oracle import enumerate_hypotheses as enumerate_hypotheses
from decodekit.testing.oracle import greedy as greedy
from decodekit.testing.oracle import next_log_probs as next_log_probs
from decodekit.testing.processor_laws import check_processor as check_processor
from decodekit.testing.scorer_laws import check_scorer as check_scorer
from decodekit.testing.toy_models import HashModel as HashModel
from decodekit.testing.toy_models import HashModelWithOutputs as HashModelWithOutputs
from decodekit.testing.toy_models import MarkovModel as MarkovModel
