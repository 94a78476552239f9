"""The answers of mbrs 0.1.8, as `record_mbrs.py` recorded them."""

import json
from pathlib import Path
from typing import Any

import pytest

import decodekit as dk
from tests.rerank.texts import decoded

CASES = json.loads(Path(__file__).with_name("mbrs.json").read_text())["cases"]
UTILITIES = {"chrF": dk.ChrF(), "chrF++": dk.ChrF(word_order=2), "BLEU": dk.BLEU()}


def in_the_given_order(best: dk.Decoded, hypotheses: list[str]) -> list[float]:
    assert best.texts is not None
    scores = dict(zip(best.texts[0], best.score[0].tolist(), strict=True))
    return [scores[text] for text in hypotheses]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_expected_utilities_are_those_of_mbrs(number: int) -> None:
    case: dict[str, Any] = CASES[number]
    out = decoded([case["hypotheses"]])
    references = decoded([case["references"]], [case["log_probs"]])
    for name, utility in UTILITIES.items():
        for way in ("pairs", "mean"):
            for weights in ("uniform", "probability"):
                best = dk.mbr(out, utility, references=references, weights=weights, aggregate=way == "mean")
                expected = case["answers"][f"{name} {way} {weights}"]
                # Of single precision in mbrs, and written with four decimals.
                assert in_the_given_order(best, case["hypotheses"]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_pruning_finds_the_winner_that_mbrs_finds(number: int) -> None:
    case: dict[str, Any] = CASES[number]
    out, references = decoded([case["hypotheses"]]), decoded([case["references"]])
    pruning = dk.Pruning(confidence=0.9, schedule=(2, 4, 8, 16), draws=100, seeds=3)
    for name, utility in UTILITIES.items():
        best = dk.mbr(out, utility, references=references, pruning=pruning)
        assert best.texts is not None
        winner = best.texts[0].index(case["hypotheses"][case["answers"][f"{name} pruned"]])
        # Of equals, mbrs takes any.
        assert best.score[0, winner] == best.score[0, 0]
