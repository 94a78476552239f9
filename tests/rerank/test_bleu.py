"""BLEU equals sacrebleu's, pair by pair, and equals the formula for mean counts."""

import math
import sys
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU as SacreBLEU  # noqa: N811 - the name is taken

import decodekit as dk
from tests.rerank.texts import SENTENCES, TEXTS


def test_a_case_by_hand() -> None:
    # Of "a b c" against "a b d e": words 2 of 3, pairs 1 of 2, no triple: half of one, of 1. Too short.
    expected = 100 * (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3) * math.exp(1 - 4 / 3)
    assert dk.BLEU().pairwise(["a b c"], ["a b d e"]).item() == pytest.approx(expected, rel=1e-12)
    assert dk.BLEU(max_order=1).pairwise(["a b c"], ["a b d e"]).item() == pytest.approx(
        100 * 2 / 3 * math.exp(-1 / 3), rel=1e-12
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (dk.BLEU(), SacreBLEU(effective_order=True)),
        (
            dk.BLEU(lowercase=True, max_order=2),
            SacreBLEU(effective_order=True, lowercase=True, max_ngram_order=2),
        ),
        (dk.BLEU(tokenize="char"), SacreBLEU(effective_order=True, tokenize="char")),
        (dk.BLEU(tokenize="intl"), SacreBLEU(effective_order=True, tokenize="intl")),
        (dk.BLEU(smooth="none"), SacreBLEU(effective_order=True, smooth_method="none")),
        (dk.BLEU(smooth="floor"), SacreBLEU(effective_order=True, smooth_method="floor")),
        (
            dk.BLEU(smooth="floor", smooth_value=0.5),
            SacreBLEU(effective_order=True, smooth_method="floor", smooth_value=0.5),
        ),
        (dk.BLEU(smooth="add-k"), SacreBLEU(effective_order=True, smooth_method="add-k")),
        (
            dk.BLEU(smooth="add-k", smooth_value=2),
            SacreBLEU(effective_order=True, smooth_method="add-k", smooth_value=2),
        ),
    ],
    ids=[f"case {number}" for number in range(9)],
)
@settings(max_examples=60, deadline=None)
@given(hypothesis=st.one_of(TEXTS, SENTENCES), reference=st.one_of(TEXTS, SENTENCES))
def test_it_is_sacrebleus_sentence_score(ours: dk.BLEU, theirs: Any, hypothesis: str, reference: str) -> None:  # noqa: ANN401
    expected = theirs.sentence_score(hypothesis, [reference]).score
    # The same formula, multiplied in another order.
    assert ours.pairwise([hypothesis], [reference]).item() == pytest.approx(expected, rel=1e-10, abs=1e-10)


def exact_mean_bleu(hypothesis: str, references: list[str], weights: list[Fraction]) -> float:
    """BLEU against mean counts and mean length, with exponential smoothing, from fractions."""
    ours, precisions, halvings = hypothesis.split(), [], 0
    for order in range(1, min(4, len(ours)) + 1):
        counts = [
            Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))
            for words in (ours, *(text.split() for text in references))
        ]
        common = Fraction(0)
        for ngram, count in counts[0].items():
            mean = sum(weight * theirs[ngram] for weight, theirs in zip(weights, counts[1:], strict=True))
            common += min(Fraction(count), mean)
        if order == 1 and not common:
            return 0.0
        halvings += not common
        precisions.append((common or Fraction(1, 2**halvings)) / counts[0].total())
    length = sum(weight * len(text.split()) for weight, text in zip(weights, references, strict=True))
    mean = math.prod(map(float, precisions)) ** (1 / len(precisions)) if precisions else 0.0
    return 100 * mean * (math.exp(min(0, 1 - length / len(ours))) if ours else 0.0)


@settings(max_examples=60, deadline=None)
@given(
    hypotheses=st.lists(SENTENCES, min_size=1, max_size=3, unique=True),
    references=st.lists(SENTENCES, min_size=1, max_size=4, unique=True),
    data=st.data(),
)
def test_the_mean_reference_is_the_mean_of_counts_and_lengths(
    hypotheses: list[str], references: list[str], data: st.DataObject
) -> None:
    parts = data.draw(st.lists(st.integers(1, 5), min_size=len(references), max_size=len(references)))
    weights = [Fraction(part, sum(parts)) for part in parts]
    shares = torch.tensor([float(weight) for weight in weights], dtype=torch.float64)
    found = dk.BLEU(tokenize="none").aggregated(hypotheses, references, shares).tolist()
    for hypothesis, value in zip(hypotheses, found, strict=True):
        # Double precision against fractions.
        assert value == pytest.approx(exact_mean_bleu(hypothesis, references, weights), rel=1e-9, abs=1e-9)


def test_without_sacrebleu_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(ImportError, match=r"pip install decodekit\[metrics\]"):
        dk.BLEU()


@pytest.mark.parametrize("order", [0, 2.0, True])
def test_max_order_must_be_an_integer_of_at_least_one(order: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="BLEU: max_order must be an integer of at least 1"):
        dk.BLEU(max_order=order)


@pytest.mark.parametrize("options", [{"smooth": "half"}, {"smooth": None}])
def test_smooth_must_be_one_of_sacrebleus(options: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="BLEU: smooth must be 'exp', 'floor', 'add-k' or 'none'"):
        dk.BLEU(**options)


@pytest.mark.parametrize("value", [0, -1.0, math.inf, "1"])
def test_smooth_value_must_be_above_zero(value: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="BLEU: smooth_value must be a finite number above 0"):
        dk.BLEU(smooth="floor", smooth_value=value)


@pytest.mark.parametrize("smooth", ["exp", "none"])
def test_a_smooth_value_that_would_be_ignored_is_refused(smooth: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="takes no smooth_value"):
        dk.BLEU(smooth=smooth, smooth_value=1.0)


def test_tokenize_must_be_a_name_that_sacrebleu_knows() -> None:
    with pytest.raises(ValueError, match=r"BLEU: tokenize must be one of 13a, char, .*, got 'words'"):
        dk.BLEU(tokenize="words")
