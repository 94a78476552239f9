import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.parity import LAWS
from tests.processors.reference import BANNED, CASES, NO_TEXT, assert_bans, kept, probabilities

# Powers of two, so that probabilities are exact: 1/8, 1/2, 1/8, 1/4. Sorted, their second differences are
# 1/8 and 1/8.
EIGHTHS = torch.tensor([[0.0, 2.0, 0.0, 1.0]]) * math.log(2)


def reference(scores: list[float], z: float) -> list[float]:
    """The bend up to every token, less the fraction that is kept."""
    probs = probabilities(scores)
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    ranked = [probs[token] for token in order]
    bends = [abs(ranked[i] - 2 * ranked[i + 1] + ranked[i + 2]) for i in range(len(ranked) - 2)]
    excess = [-1.0] * len(scores)
    if sum(bends) == 0:
        return excess
    for rank in range(1, len(ranked)):
        # The last rank has no second difference of its own.
        excess[order[rank]] = sum(bends[:rank]) - z * sum(bends)
    return excess


def test_tail_free_keeps_the_ranks_before_the_bend_passes_z() -> None:
    assert kept(dk.TailFree(0.4), EIGHTHS) == [1]
    assert kept(dk.TailFree(0.6), EIGHTHS) == [1, 3]
    assert kept(dk.TailFree(0.99), EIGHTHS) == [1, 3]


def test_tail_free_keeps_the_token_at_the_threshold() -> None:
    assert kept(dk.TailFree(0.5), EIGHTHS) == [1, 3]


def test_tail_free_one_keeps_every_token() -> None:
    assert kept(dk.TailFree(1), EIGHTHS) == [0, 1, 2, 3]


def test_tail_free_zero_keeps_the_tokens_before_the_first_bend() -> None:
    assert kept(dk.TailFree(0.0), EIGHTHS) == [1]
    # The first three of 4/13, 3/13, 2/13, 2/13 and 2/13 lie on a line.
    assert kept(dk.TailFree(0.01), torch.tensor([4.0, 3.0, 2.0, 2.0, 2.0]).log()) == [0, 1]


def test_tail_free_finds_no_tail_in_a_straight_line_or_in_two_tokens() -> None:
    assert kept(dk.TailFree(0.0), [1.0, 1.0, 1.0]) == [0, 1, 2]
    assert kept(dk.TailFree(0.0), [1.0, 5.0]) == [0, 1]
    assert kept(dk.TailFree(0.0), [1.0]) == [0]


def test_tail_free_keeps_the_lowest_ids_of_tied_tokens() -> None:
    # 3/8, 2/8, 2/8 and 1/8 bend by 1/8 at the second rank, and again at the third.
    assert kept(dk.TailFree(0.6), torch.tensor([2.0, 2.0, 3.0, 1.0]).log()) == [0, 2]


def test_tail_free_leaves_banned_tokens_banned() -> None:
    assert kept(dk.TailFree(1), [0.0, BANNED, 1.0]) == [0, 2]
    scores = torch.full((1, 3), BANNED)
    assert scores.tolist() == dk.TailFree(0.5)(NO_TEXT, scores).tolist()


def test_tail_free_takes_one_number_for_each_prompt() -> None:
    out = dk.TailFree([0.4, 1.0])(NO_TEXT.expand(2, -1), EIGHTHS.expand(2, -1))
    assert (out > BANNED).tolist() == [[False, True, False, False], [True] * 4]


@LAWS
@given(CASES, st.sampled_from([0.0, 0.5, 0.95]) | st.floats(0, 1))
def test_tail_free_is_the_slow_reference(case: tuple[dk.History, torch.Tensor], z: float) -> None:
    history, scores = case
    expected = [reference(row, z) for row in scores.tolist()]
    assert_bans(dk.TailFree(z).process(history, scores), scores, expected, near=1e-6)


@pytest.mark.parametrize("z", [-0.1, 1.1, math.inf, math.nan, "1", None, True, [0.1, 2]])
def test_tail_free_refuses_numbers_outside_zero_to_one(z: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^TailFree: z must be in \[0, 1\], got"):
        dk.TailFree(z)


@pytest.mark.parametrize(
    "processor", [dk.TailFree(0.0), dk.TailFree(0.9), lambda prompts: dk.TailFree([0.9**i for i in prompts])]
)
def test_tail_free_keeps_the_contract_of_processors(processor: Any) -> None:  # noqa: ANN401
    check_processor(processor, max_examples=15)
