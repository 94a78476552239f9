import math
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import SynthIDTextWatermarkLogitsProcessor

import decodekit as dk
from tests.processors.parity import LAWS

KEYS = tuple(range(100, 2100, 100))
MARK = dk.SynthID(KEYS, 3)


def test_synthid_detector_scores_the_tokens_after_a_whole_context_that_is_new() -> None:
    detector = dk.SynthIDDetector(MARK)
    assert detector([[1, 2, 3, 4, 5]]).scored.tolist() == [3]
    # Contexts: 1 2, 2 1, then both again.
    assert detector([[1, 2, 1, 2, 1, 2]]).scored.tolist() == [2]
    forgetful = dk.SynthIDDetector(dk.SynthID(KEYS, 3, context_history_size=1))
    assert forgetful([[1, 2, 1, 2, 1, 2]]).scored.tolist() == [4]


def test_synthid_detector_means_over_tokens_and_rounds() -> None:
    mark, text = dk.SynthID([5, 6], 2), [1, 2, 3]
    values = dk.SynthIDDetector(mark).g_values(text)
    out = dk.SynthIDDetector(mark, weights=[3, 1])(text)
    assert out.mean.tolist() == [values.sum().item() / 4]
    # Weights that sum to the number of rounds: 1.5 and 0.5.
    expected = (1.5 * values[:, 0].sum().item() + 0.5 * values[:, 1].sum().item()) / 4
    assert out.weighted_mean.tolist() == [expected]
    # A fair coin's variance is 1/4: two tokens, and the weights' squares.
    deviation = math.sqrt(2 * (1.5**2 + 0.5**2) / 4) / 4
    assert out.z_score.tolist() == pytest.approx([(expected - 0.5) / deviation])
    assert out.p_value.tolist() == pytest.approx([0.5 * math.erfc((expected - 0.5) / deviation / 2**0.5)])


def test_synthid_detector_weighs_rounds_from_ten_down_to_one() -> None:
    mark, text = dk.SynthID(range(10), 2), [4, 8, 2, 9, 1]
    plain = dk.SynthIDDetector(mark)(text)
    assert plain == dk.SynthIDDetector(mark, weights=range(10, 0, -1))(text)


def test_synthid_detector_scores_every_sequence_as_it_does_alone() -> None:
    texts = [[1, 2, 3, 4], [7, 6, 5, 4, 3, 2, 1]]
    together = dk.SynthIDDetector(MARK)(texts)
    alone = [dk.SynthIDDetector(MARK)(text) for text in texts]
    for several, *single in zip(together, *alone, strict=True):
        assert several.tolist() == [number.item() for number in single]


def test_synthid_detector_finds_only_sequences_generated_with_the_watermark() -> None:
    model = dk.testing.HashModel(60, seed=3, scale=1.0)
    prompts, sample = [[1, 2, 3, 4], [5, 6, 7]], dk.Sample(3, seeds=[1, 2])
    marked = dk.decode(model, prompts, sample, MARK, max_new_tokens=60)
    plain = dk.decode(model, prompts, sample, max_new_tokens=60)
    detector = dk.SynthIDDetector(MARK, threshold=4.0)
    assert detector(chain.from_iterable(marked.hypotheses())).found.all()
    assert not detector(chain.from_iterable(plain.hypotheses())).found.any()
    other = dk.SynthIDDetector(dk.SynthID(range(20), 3), threshold=4.0)
    assert not other(chain.from_iterable(marked.hypotheses())).found.any()


@pytest.mark.slow
def test_synthid_detector_finds_the_watermark_of_the_bundled_model() -> None:
    model, sample = dk.load(), dk.Sample(2, seeds=[0])
    mark = dk.SynthID(KEYS, 5)
    options: dict[str, Any] = {"max_new_tokens": 120, "end_ids": ()}
    marked = dk.decode(model, "Once upon a time", sample, mark, **options)
    plain = dk.decode(model, "Once upon a time", sample, **options)
    assert dk.SynthIDDetector(mark)(marked.hypotheses()[0]).found.all()
    assert not dk.SynthIDDetector(mark)(plain.hypotheses()[0]).found.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"watermark": None}, "watermark must be a SynthID, got None"),
        ({"threshold": float("inf")}, "threshold must be a finite number, got inf"),
        ({"weights": [1.0]}, "weights must be 20 finite numbers of at least 0, not all of them 0"),
        ({"weights": [0.0] * 20}, "weights must be"),
        ({"weights": [-1.0] + [1.0] * 19}, "weights must be"),
    ],
)
def test_synthid_detector_refuses_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^SynthIDDetector: {message}"):
        dk.SynthIDDetector(**{"watermark": MARK, **arguments})


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "sequences must be at least one, got none"),
        ([[1, 2]], "a sequence must have at least 3 tokens, got 2"),
        ([[1, 2, -3]], "token ids must be integers of at least 0, got -3"),
    ],
)
def test_synthid_detector_refuses_sequences_that_it_cannot_score(texts: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=f"^SynthIDDetector: {message}"):
        dk.SynthIDDetector(MARK)(texts)


@LAWS
@given(
    st.lists(st.integers(0, 3), min_size=5, max_size=25),
    st.lists(st.integers(0, 5000), min_size=1, max_size=8),
    st.integers(2, 5),
    st.integers(0, 5),
)
def test_synthid_detector_has_hugging_faces_g_values_at_its_places(
    text: list[int], keys: list[int], ngram_len: int, history_size: int
) -> None:
    theirs = SynthIDTextWatermarkLogitsProcessor(ngram_len, keys, 2**16, 0, history_size, torch.device("cpu"))
    ids = torch.tensor([text])
    expected = theirs.compute_g_values(ids)[theirs.compute_context_repetition_mask(ids)]
    mark = dk.SynthID(keys, ngram_len, context_history_size=history_size)
    assert expected.tolist() == dk.SynthIDDetector(mark).g_values(text).tolist()
