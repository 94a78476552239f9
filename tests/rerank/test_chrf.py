"""chrF equals sacrebleu's, pair by pair, and equals the formula for mean counts."""

import math
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.chrf import CHRF

import decodekit as dk
from tests.rerank.texts import SENTENCES, TEXTS


def test_two_texts_without_a_common_character_score_zero() -> None:
    assert dk.ChrF().pairwise(["ab", "cd"], ["ab"]).tolist() == [[100.0], [0.0]]


def test_a_case_by_hand() -> None:
    # Characters: 2 of 3 of the hypothesis, 2 of 2 of the reference. Pairs: 1 of 2, 1 of 1.
    precision, recall = (2 / 3 + 1 / 2) / 2, 1.0
    expected = 100 * 5 * precision * recall / (4 * precision + recall)
    assert dk.ChrF(char_order=2).pairwise(["abc"], ["ab"]).item() == pytest.approx(expected, rel=1e-12)
    assert dk.ChrF(char_order=2, beta=1).pairwise(["abc"], ["ab"]).item() == pytest.approx(
        100 * 2 * precision / (precision + 1), rel=1e-12
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (dk.ChrF(), CHRF()),
        (dk.ChrF(word_order=2), CHRF(word_order=2)),
        (dk.ChrF(char_order=3, beta=1, lowercase=True), CHRF(char_order=3, beta=1, lowercase=True)),
        (dk.ChrF(whitespace=True, word_order=1), CHRF(whitespace=True, word_order=1)),
        (dk.ChrF(eps_smoothing=True), CHRF(eps_smoothing=True)),
        (dk.ChrF(eps_smoothing=True, word_order=2), CHRF(eps_smoothing=True, word_order=2)),
    ],
    ids=lambda value: repr(value) if isinstance(value, dk.ChrF) else "theirs",
)
@settings(max_examples=60, deadline=None)
@given(hypothesis=st.one_of(TEXTS, SENTENCES), reference=st.one_of(TEXTS, SENTENCES))
def test_it_is_sacrebleus_sentence_score(ours: dk.ChrF, theirs: Any, hypothesis: str, reference: str) -> None:  # noqa: ANN401
    expected = theirs.sentence_score(hypothesis, [reference]).score
    # The same formula, summed in another order.
    assert ours.pairwise([hypothesis], [reference]).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def exact_mean_chrf(hypothesis: str, references: list[str], weights: list[Fraction]) -> float:
    """chrF against mean counts, in fractions, n-gram by n-gram."""
    precisions, recalls = [], []
    for order in range(1, 7):
        ours, *theirs = (
            Counter(text[start : start + order] for start in range(len(text) - order + 1))
            for text in ("".join(text.split()) for text in (hypothesis, *references))
        )
        ngrams = set().union(*theirs)
        mean = {
            ngram: sum(weight * counts[ngram] for weight, counts in zip(weights, theirs, strict=True))
            for ngram in ngrams
        }
        common = sum((min(Fraction(ours[ngram]), mean[ngram]) for ngram in ngrams), Fraction(0))
        if ours and mean:
            precisions.append(common / sum(ours.values()))
            recalls.append(common / sum(mean.values()))
    if not precisions or not sum(precisions):
        return 0.0
    precision, recall = (sum(parts) / len(parts) for parts in (precisions, recalls))
    return float(100 * 5 * precision * recall / (4 * precision + recall))


@settings(max_examples=60, deadline=None)
@given(
    hypotheses=st.lists(SENTENCES, min_size=1, max_size=3, unique=True),
    references=st.lists(SENTENCES, min_size=1, max_size=4, unique=True),
    data=st.data(),
)
def test_the_mean_reference_is_the_mean_of_the_counts(
    hypotheses: list[str], references: list[str], data: st.DataObject
) -> None:
    parts = data.draw(st.lists(st.integers(1, 5), min_size=len(references), max_size=len(references)))
    weights = [Fraction(part, sum(parts)) for part in parts]
    shares = torch.tensor([float(weight) for weight in weights], dtype=torch.float64)
    found = dk.ChrF().aggregated(hypotheses, references, shares).tolist()
    for hypothesis, value in zip(hypotheses, found, strict=True):
        # Double precision against fractions.
        assert value == pytest.approx(exact_mean_chrf(hypothesis, references, weights), rel=1e-9, abs=1e-9)


def test_one_reference_is_its_own_mean() -> None:
    hypotheses, one = ["the cat sat", "a dog", ""], torch.ones(1, dtype=torch.float64)
    pairwise = dk.ChrF(word_order=2).pairwise(hypotheses, ["a cat sat"])
    assert (
        pairwise[:, 0].tolist() == dk.ChrF(word_order=2).aggregated(hypotheses, ["a cat sat"], one).tolist()
    )


@pytest.mark.parametrize("order", [0, -1, 1.5, True, "6"])
def test_char_order_must_be_an_integer_of_at_least_one(order: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="ChrF: char_order must be an integer of at least 1"):
        dk.ChrF(char_order=order)


@pytest.mark.parametrize("order", [-1, 0.5, None])
def test_word_order_must_be_an_integer_of_at_least_zero(order: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="ChrF: word_order must be an integer of at least 0"):
        dk.ChrF(word_order=order)


@pytest.mark.parametrize("beta", [0, -2, math.inf, math.nan, "2"])
def test_beta_must_be_above_zero(beta: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="ChrF: beta must be a finite number above 0"):
        dk.ChrF(beta=beta)
