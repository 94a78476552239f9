from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WatermarkDetector as TheirDetector

import decodekit as dk
from tests.processors.parity import LAWS

MARK = dk.Watermark(0.5, lists="hash")


def green_after(last: int, *, green: bool) -> int:
    """The smallest id after a token that is green, or is not."""
    found = MARK.is_green(torch.tensor([[last]]), torch.arange(20)[None], 20)[0]
    return found.tolist().index(green)


def chain_of(*greens: bool) -> list[int]:
    """A sequence with green tokens after the first at the given places."""
    text = [0]
    for green in greens:
        text.append(green_after(text[-1], green=green))
    return text


def test_watermark_detector_counts_the_green_tokens_after_the_first() -> None:
    out = dk.WatermarkDetector(MARK, 20)([chain_of(True, False, True), chain_of(True, True, True, True)])
    assert out.scored.tolist() == [3, 4]
    assert out.green.tolist() == [2, 4]


def test_watermark_detector_measures_in_standard_deviations() -> None:
    # 16 tokens, half of them green by chance with a standard deviation of 2.
    out = dk.WatermarkDetector(MARK, 20)([chain_of(*[True] * 16), chain_of(*[True, False] * 8)])
    assert out.z_score.tolist() == [4.0, 0.0]
    assert out.p_value[1].item() == 0.5
    # Phi(-4), from a table
    assert out.p_value[0].item() == pytest.approx(3.167e-5, rel=1e-3)
    assert out.found.tolist() == [True, False]


def test_watermark_detector_finds_by_the_threshold() -> None:
    text = chain_of(*[True] * 16)
    found = [dk.WatermarkDetector(MARK, 20, threshold=at)(text).found.tolist() for at in (3.9, 4.0)]
    assert found == [[True], [False]]


def test_watermark_detector_can_count_an_ngram_once() -> None:
    text = [1, 2] * 5
    assert dk.WatermarkDetector(MARK, 20)(text).scored.tolist() == [9]
    assert dk.WatermarkDetector(MARK, 20, ignore_repeated_ngrams=True)(text).scored.tolist() == [2]


def test_watermark_detector_takes_one_sequence_several_or_a_tensor() -> None:
    detector = dk.WatermarkDetector(MARK, 20)
    for texts in ([1, 2, 3], [[1, 2, 3]], torch.tensor([1, 2, 3]), torch.tensor([[1, 2, 3]])):
        assert detector(texts).scored.tolist() == [2]


@pytest.mark.parametrize(
    "mark",
    [
        dk.Watermark(0.5, 4.0),
        dk.Watermark(0.5, 4.0, seeding_scheme="selfhash", context_width=2),
        dk.Watermark(0.5, 4.0, lists="hash"),
        dk.Watermark(0.5, 4.0, seeding_scheme="selfhash", context_width=3, lists="hash"),
    ],
)
def test_watermark_detector_finds_only_sequences_generated_with_the_watermark(
    mark: dk.Watermark,
) -> None:
    model = dk.testing.HashModel(60, seed=3, scale=1.0)
    detector = dk.WatermarkDetector(mark, 60, threshold=4.0)
    prompts, sample = [[1, 2, 3, 4], [5, 6, 7]], dk.Sample(3, seeds=[1, 2])
    marked = dk.decode(model, prompts, sample, mark, max_new_tokens=60)
    plain = dk.decode(model, prompts, sample, max_new_tokens=60)
    assert detector(chain.from_iterable(marked.hypotheses())).found.all()
    assert not detector(chain.from_iterable(plain.hypotheses())).found.any()
    # Another key finds nothing either.
    other = dk.Watermark(0.5, 4.0, 7, mark.seeding_scheme, mark.context_width, lists=mark.lists)
    assert not dk.WatermarkDetector(other, 60, threshold=4.0)(
        chain.from_iterable(marked.hypotheses())
    ).found.any()


def test_watermark_detector_finds_the_watermark_of_the_bundled_model() -> None:
    model, sample = dk.load(), dk.Sample(2, seeds=[0])
    vocab = model.vocabulary.size
    mark = dk.Watermark(0.25, 4.0, lists="hash")
    detector = dk.WatermarkDetector(mark, vocab, threshold=4.0, ignore_repeated_ngrams=True)
    options: dict[str, Any] = {"max_new_tokens": 80, "end_ids": ()}
    marked = dk.decode(model, "Once upon a time", sample, mark, **options)
    plain = dk.decode(model, "Once upon a time", sample, **options)
    assert detector(marked.hypotheses()[0]).found.all()
    assert not detector(plain.hypotheses()[0]).found.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"watermark": None}, "watermark must be a Watermark, got None"),
        ({"vocab": 0}, "vocab must be an integer of at least 1, got 0"),
        ({"ignore_repeated_ngrams": 1}, "ignore_repeated_ngrams must be True or False, got 1"),
        ({"threshold": float("nan")}, "threshold must be a finite number, got nan"),
    ],
)
def test_watermark_detector_refuses_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^WatermarkDetector: {message}"):
        dk.WatermarkDetector(**{"watermark": MARK, "vocab": 20, **arguments})


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "sequences must be at least one, got none"),
        ([[1]], "a sequence must have at least 2 tokens, got 1"),
        ([[]], "a sequence must have at least 2 tokens, got 0"),
        ([[1, 20]], "token ids must be below the vocabulary size 20, got 20"),
        ([[1, -1]], "token ids must be integers of at least 0, got -1"),
        ([[1, 0.5]], "token ids must be integers of at least 0, got 0.5"),
    ],
)
def test_watermark_detector_refuses_sequences_that_it_cannot_score(texts: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=f"^WatermarkDetector: {message}"):
        dk.WatermarkDetector(MARK, 20)(texts)


@settings(LAWS, max_examples=40)  # theirs draws a table of a million numbers each time
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=9, max_size=9), min_size=1, max_size=3),
    st.sampled_from(["lefthash", "selfhash"]),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([0.25, 0.5, 0.9]),
)
def test_watermark_detector_is_hugging_faces(
    texts: list[list[int]],
    scheme: Any,  # noqa: ANN401
    width: int,
    once: bool,  # noqa: FBT001 - a parameter of the law
    ratio: float,
) -> None:
    settings = {
        "greenlist_ratio": ratio,
        "bias": 2.0,
        "hashing_key": 15485863,
        "seeding_scheme": scheme,
        "context_width": width,
    }
    config: Any = SimpleNamespace(bos_token_id=-1, is_encoder_decoder=False, vocab_size=40)
    theirs = TheirDetector(config, "cpu", settings, ignore_repeated_ngrams=once)(
        torch.tensor(texts), z_threshold=1.0, return_dict=True
    )
    ours = dk.WatermarkDetector(dk.Watermark(**settings), 40, ignore_repeated_ngrams=once, threshold=1.0)(
        texts
    )  # type: ignore[arg-type]
    assert theirs.num_tokens_scored.tolist() == ours.scored.tolist()
    assert theirs.num_green_tokens.tolist() == ours.green.tolist()
    assert theirs.z_score.tolist() == ours.z_score.tolist()
    assert theirs.p_value.tolist() == ours.p_value.tolist()
    assert theirs.prediction.tolist() == ours.found.tolist()
