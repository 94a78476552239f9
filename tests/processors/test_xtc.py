from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import decodekit as dk
from decodekit import rng
from decodekit.testing import check_processor
from tests.processors.parity import LAWS
from tests.processors.reference import BANNED, CASES, assert_bans, history_of, probabilities

Case = tuple[dk.History, torch.Tensor]
# The 99.9th percentiles of the chi-squared distribution, by degrees of freedom (any table has them).
UNLIKELY = {3: 16.27, 7: 24.32}


def apply(processor: dk.XTC, history: dk.History, scores: torch.Tensor) -> torch.Tensor:
    return processor.apply(history, scores, processor.init(history))[0]


def kept(processor: dk.XTC, probs: list[float]) -> list[int]:
    """The ids that survive at the first step."""
    out = apply(processor, history_of([[0]], room=1), torch.tensor([probs]).log())
    return [token for token, score in enumerate(out[0].tolist()) if score > BANNED]


def acted(processor: dk.XTC, history: dk.History, steps: int) -> torch.Tensor:
    """[rows steps]: whether it banned the likelier of two top choices."""
    memory, scores = processor.init(history), torch.tensor([0.6, 0.4]).log().repeat(len(history.tokens), 1)
    out = []
    for _ in range(steps):
        processed, memory = processor.apply(history, scores, memory)
        out.append(processed[:, 0] == BANNED)
        history = history.append(torch.zeros(len(scores), dtype=torch.long))
    return torch.stack(out, 1)


def chi_squared(patterns: torch.Tensor, probability: float) -> float:
    """How far rows of independent coins are from what is expected of them."""
    statistic = 0.0
    for pattern in product([True, False], repeat=patterns.shape[1]):
        expected = float(len(patterns))
        for heads in pattern:
            expected *= probability if heads else 1 - probability
        observed = (patterns == torch.tensor(pattern)).all(1).sum().item()
        statistic += (observed - expected) ** 2 / expected
    return statistic


def reference(scores: list[float], threshold: float) -> list[float]:
    """1 for every token that goes, -1 for the others; 0 if that hangs on a rounding."""
    probs = probabilities(scores)
    choices = [token for token, prob in enumerate(probs) if prob >= threshold and scores[token] > BANNED]
    spared = min(choices, key=lambda token: (scores[token], token), default=None)
    if any(abs(prob - threshold) < 1e-6 for prob in probs):
        return [0.0] * len(scores)
    return [1.0 if token in choices and token != spared else -1.0 for token in range(len(scores))]


def test_xtc_bans_all_top_choices_but_the_least_likely() -> None:
    assert kept(dk.XTC(0.15, 1.0, 0), [0.4, 0.1, 0.3, 0.2]) == [1, 3]
    assert kept(dk.XTC(0.25, 1.0, 0), [0.4, 0.1, 0.3, 0.2]) == [1, 2, 3]


def test_xtc_does_nothing_where_fewer_than_two_tokens_reach_the_threshold() -> None:
    assert kept(dk.XTC(0.35, 1.0, 0), [0.4, 0.1, 0.3, 0.2]) == [0, 1, 2, 3]
    assert kept(dk.XTC(0.45, 1.0, 0), [0.4, 0.1, 0.3, 0.2]) == [0, 1, 2, 3]


def test_xtc_counts_a_token_at_the_threshold_as_a_top_choice() -> None:
    assert kept(dk.XTC(0.25, 1.0, 0), [0.5, 0.25, 0.25]) == [1]


def test_xtc_spares_the_lowest_id_of_tied_top_choices() -> None:
    assert kept(dk.XTC(0.2, 1.0, 0), [0.1, 0.3, 0.3, 0.3]) == [0, 1]


def test_xtc_with_a_threshold_of_zero_leaves_the_least_likely_token_that_is_not_banned() -> None:
    assert kept(dk.XTC(0, 1, 0), [0.7, 0.0, 0.1, 0.2]) == [2]


def test_xtc_leaves_a_row_without_tokens_as_it_is() -> None:
    scores = torch.full((1, 3), BANNED)
    assert scores.tolist() == apply(dk.XTC(0, 1, 0), history_of([[0]], room=1), scores).tolist()


@LAWS
@given(CASES, st.sampled_from([0.0, 0.1]) | st.floats(0, 1), st.integers(-(2**63), 2**63 - 1))
def test_xtc_is_the_slow_reference_where_it_always_acts(case: Case, threshold: float, seed: int) -> None:
    history, scores = case
    expected = [reference(row, threshold) for row in scores.tolist()]
    assert_bans(apply(dk.XTC(threshold, 1.0, seed), history, scores), scores, expected)


@LAWS
@given(CASES, st.floats(0, 1), st.integers(-(2**63), 2**63 - 1))
def test_xtc_with_probability_zero_changes_nothing(case: Case, threshold: float, seed: int) -> None:
    history, scores = case
    assert torch.equal(scores, apply(dk.XTC(threshold, 0, seed), history, scores))


@pytest.mark.parametrize("probability", [0.3, 0.5])
def test_xtc_acts_as_often_as_it_should_and_independently_at_every_step(probability: float) -> None:
    history = history_of([[0]] * 2000, room=4)
    assert chi_squared(acted(dk.XTC(0.1, probability, range(2000)), history, 3), probability) < UNLIKELY[7]


def test_xtc_acts_independently_on_the_samples_of_a_prompt() -> None:
    pairs = acted(dk.XTC(0.1, 0.5, range(2000)), history_of([[0]] * 2000, 2, rows_per_prompt=2), 1)
    assert chi_squared(pairs.view(-1, 2), 0.5) < UNLIKELY[3]


def test_xtc_does_not_draw_what_a_sample_with_the_same_seeds_draws() -> None:
    seeds = torch.arange(2000)
    acts = acted(dk.XTC(0.1, 0.5, seeds), history_of([[0]] * 2000, 2), 1)
    drawn = rng.uniform(seeds, torch.zeros_like(seeds), torch.tensor(0))[:, None] < 0.5
    assert chi_squared(torch.cat([acts, drawn], 1), 0.5) < UNLIKELY[3]


def test_xtc_gives_a_prompt_what_it_gives_it_alone() -> None:
    texts, seeds = [[1, 2, 3], [4], [5, 6]], [9, -9, 2**62]
    together = acted(dk.XTC(0.1, 0.5, seeds), history_of(texts, 40, rows_per_prompt=2), 40)
    for number, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
        alone = acted(dk.XTC(0.1, 0.5, seed), history_of([text], 40, rows_per_prompt=2), 40)
        assert torch.equal(alone, together[2 * number : 2 * number + 2])
    assert together.any(1).all()
    assert not together.all(1).any()


def test_xtc_draws_the_same_again() -> None:
    history, xtc = history_of([[1, 2], [3]], 30), dk.XTC(0.1, 0.5, 7)
    first = acted(xtc, history, 30)
    assert torch.equal(first, acted(xtc, history, 30))
    assert not torch.equal(first, acted(dk.XTC(0.1, 0.5, 8), history, 30))
    # One seed for all: a prompt's draws do not depend on where in the batch it stands.
    assert torch.equal(first[0], first[1])


def test_xtc_takes_its_stream_along_when_rows_are_reordered() -> None:
    history, xtc = history_of([[0]], 30, rows_per_prompt=2), dk.XTC(0.1, 0.5, 3)
    memory, scores = xtc.init(history), torch.tensor([0.6, 0.4]).log().repeat(2, 1)
    swapped = memory._replace(streams=memory.streams.flip(0))
    for _ in range(20):
        straight = xtc.apply(history, scores, memory)[0]
        assert torch.equal(straight.flip(0), xtc.apply(history, scores, swapped)[0])
        history = history.append(torch.zeros(2, dtype=torch.long))


def test_xtc_knows_samples_by_their_slot_in_the_prompt_also_in_a_part_of_the_rows() -> None:
    history = history_of([[0], [0]], 30, rows_per_prompt=2)
    xtc, rows = dk.XTC(0.1, 0.5, [3, 4]), torch.tensor([3, 0])
    assert torch.equal(acted(xtc, history, 30)[rows], acted(xtc, history.part(rows), 30))


@pytest.mark.parametrize("value", [-0.1, 1.1, torch.nan, torch.inf, "1", None, True, [0.5, 2]])
@pytest.mark.parametrize("name", ["threshold", "probability"])
def test_xtc_refuses_what_is_outside_zero_to_one(name: str, value: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=rf"^XTC: {name} must be in \[0, 1\], got"):
        dk.XTC(**{"threshold": 0.1, "probability": 0.5, "seeds": 0, name: value})


@pytest.mark.parametrize("seeds", [0.5, 2**63, -(2**63) - 1, "1", None, True, [0, 1.0]])
def test_xtc_refuses_seeds_that_are_not_64_bit_integers(seeds: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^XTC: seeds must be 64-bit integers, got"):
        dk.XTC(0.1, 0.5, seeds)


def test_xtc_refuses_another_number_of_seeds_than_prompts() -> None:
    with pytest.raises(dk.DecodekitError, match=r"^XTC: seeds must be one number, or one for each prompt"):
        dk.XTC(0.1, 0.5, [1, 2, 3]).init(history_of([[0], [0]], 1))


@pytest.mark.parametrize(
    "processor",
    [
        dk.XTC(0.1, 0, 5),
        dk.XTC(0.1, 1, 5),
        lambda prompts: dk.XTC([0.1 + 0.1 * i for i in prompts], [i % 2 for i in prompts], prompts),
    ],
)
def test_xtc_keeps_the_contract_of_processors(processor: Any) -> None:  # noqa: ANN401
    check_processor(processor, max_examples=15)
