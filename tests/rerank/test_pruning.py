"""Pruning: dropped hypotheses, saved comparisons, and the winner where it is clear."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from tests.rerank.texts import SENTENCES, decoded

NUMBERS = [str(number) for number in (10, 11, 9, 10, 10, 12, 8, 10, 50, 60, 10, 11, 9, 10, 70, 10)]


def near(one: str, other: str) -> float:
    return -abs(int(one) - int(other))


def test_a_clear_loser_is_dropped_in_the_first_round() -> None:
    full = dk.mbr(decoded([NUMBERS]), near)
    best = dk.mbr(decoded([NUMBERS]), near, pruning=dk.Pruning(schedule=(4, 8, 16)))
    assert best.texts[0][0] == full.texts[0][0] == "10"
    # The nine different numbers, by 10, 11 and 9; of those that stay by 12 and 8, 50 and 60, then by 70.
    rounds = dict(zip(best.texts[0], best.report.rounds[0].tolist(), strict=True))
    assert {rounds[far] for far in ("50", "60", "70")} == {0}
    assert rounds["10"] == 3
    calls = best.report.calls.item()
    assert 8 * 3 <= calls < 8 * 8
    assert best.report.saved.item() == 8 * 8 - calls
    assert best.report.rounds[0].tolist() == sorted(best.report.rounds[0].tolist(), reverse=True)


def test_a_dropped_hypothesis_has_the_score_under_its_references() -> None:
    best = dk.mbr(decoded([NUMBERS]), near, pruning=dk.Pruning(schedule=(4, 16)))
    place = best.texts[0].index("70")
    assert best.score[0, place].item() == -(60 + 59 + 61 + 60) / 4


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(SENTENCES, min_size=1, max_size=8), seed=st.integers(0, 99))
def test_with_one_round_over_all_references_it_is_plain(texts: list[str], seed: int) -> None:
    plain = dk.mbr(decoded([texts]), dk.ChrF())
    pruned = dk.mbr(decoded([texts]), dk.ChrF(), pruning=dk.Pruning(schedule=(8,), draws=20, seeds=seed))
    # Sums in another order; the winner of the round stays.
    assert pruned.score[0, 0].item() == pytest.approx(plain.score[0, 0].item(), rel=1e-6)
    assert pruned.report.saved.item() == 0


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(SENTENCES, min_size=2, max_size=12))
def test_with_confidence_zero_every_possible_winner_stays(texts: list[str]) -> None:
    # In none of these can a hypothesis be dropped that is as good as the best by every reference.
    pruned = dk.mbr(decoded([texts]), lambda _, __: 0.0, pruning=dk.Pruning(schedule=(1, 2, 4), draws=5))
    assert len(set(pruned.report.rounds[0].tolist())) == 1


def test_the_same_seed_drops_the_same_hypotheses_and_another_may_not() -> None:
    texts = [" ".join(f"w{(7 * one + other) % 11}" for other in range(5)) for one in range(24)]
    schedule = (3, 6, 12, 24)

    def rounds(seed: int) -> list[int]:
        pruning = dk.Pruning(confidence=0.7, schedule=schedule, draws=9, seeds=seed)
        found: list[int] = dk.mbr(decoded([texts]), dk.ChrF(), pruning=pruning).report.rounds[0].tolist()
        return found

    assert rounds(1) == rounds(1)
    assert len({tuple(rounds(seed)) for seed in range(8)}) > 1


def test_a_prompt_with_its_own_seed_does_not_depend_on_the_batch() -> None:
    texts = [
        [" ".join(f"w{(7 * one + other + row) % 11}" for other in range(5)) for one in range(24)]
        for row in (0, 1)
    ]
    options = {"confidence": 0.7, "schedule": (3, 6, 12, 24), "draws": 9}
    together = dk.mbr(decoded(texts), dk.ChrF(), pruning=dk.Pruning(seeds=[5, 8], **options))
    alone = dk.mbr(decoded(texts[1:]), dk.ChrF(), pruning=dk.Pruning(seeds=[8], **options))
    assert together.report.rounds[1].tolist() == alone.report.rounds[0].tolist()
    assert together.texts[1] == alone.texts[0]


def test_win_rates_are_those_of_the_bootstrap_by_hand() -> None:
    # Two hypotheses, four references: the second wins a draw of four only where the last reference is
    # drawn more often than the others together, or as often: 3 or 4 times, or 2 times for a tie.
    table = torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    chance = sum(math.comb(4, times) * 0.25**times * 0.75 ** (4 - times) for times in (2, 3, 4))

    def second_stays(confidence: float) -> bool:
        pruning = dk.Pruning(confidence=confidence, schedule=(4,), draws=20_000)
        return pruning.prune(lambda rows, columns: table[rows][:, columns], 2, 4, 0).rounds.tolist() == [1, 1]

    # Three standard errors of 20,000 draws are 0.01.
    assert second_stays(1 - chance + 0.01)
    assert not second_stays(1 - chance - 0.01)


def test_a_single_hypothesis_is_compared_once_and_no_more() -> None:
    pruned = dk.mbr(decoded([["a"] * 16]), lambda _, __: 2.0, pruning=dk.Pruning(schedule=(4, 8, 16)))
    assert pruned.score[0].tolist() == [2.0] * 16
    assert pruned.report.calls.tolist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 1}, r"confidence must be in \[0, 1\), got 1"),
        ({"confidence": -0.1}, r"confidence must be in \[0, 1\)"),
        ({"confidence": math.nan}, r"confidence must be in \[0, 1\)"),
        ({"confidence": "high"}, r"confidence must be in \[0, 1\)"),
        ({"schedule": ()}, "schedule must be increasing integers of at least 1"),
        ({"schedule": (8, 8)}, "schedule must be increasing"),
        ({"schedule": (16, 8)}, "schedule must be increasing"),
        ({"schedule": (0, 8)}, "schedule must be increasing"),
        ({"schedule": (1.5,)}, "schedule must be increasing"),
        ({"schedule": 8}, "schedule must be increasing"),
        ({"draws": 0}, "draws must be an integer of at least 1, got 0"),
        ({"draws": 1.5}, "draws must be an integer of at least 1"),
        ({"seeds": 2**63}, "seeds must be 64-bit integers"),
        ({"seeds": [0.5]}, "seeds must be 64-bit integers, got 0.5"),
        ({"seeds": "ab"}, "seeds must be 64-bit integers"),
        ({"seeds": None}, "seeds must be 64-bit integers"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Pruning: {message}"):
        dk.Pruning(**options)


def test_there_must_be_one_seed_per_prompt() -> None:
    with pytest.raises(dk.DecodekitError, match="one seed, or one per prompt, got 2 seeds for 1 prompts"):
        dk.mbr(decoded([["a"]]), dk.ChrF(), pruning=dk.Pruning(seeds=[1, 2]))
