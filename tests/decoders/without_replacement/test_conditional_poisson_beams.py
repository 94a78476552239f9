"""Conditional Poisson beams: solved by hand, against enumeration."""

import itertools
import math
from collections import Counter

import pytest
import torch

import decodekit as dk
from decodekit.decoders.without_replacement import conditional_poisson_beams
from decodekit.decoders.without_replacement.conditional_poisson_beams import log_odds
from decodekit.engine.decode import decode_steps
from decodekit.testing import HashModel, MarkovModel, check_captures, check_decoder
from tests.decoders.enumerated import every_text, next_probs
from tests.decoders.without_replacement.theory import (
    HASH,
    MARKOV,
    BansAllAfter,
    SumIsFour,
    Text,
    check_stable_prefix,
    deviation,
    drawn,
    expectation,
    standard_errors,
)

COIN = MarkovModel([[0.25, 0.75], [0.25, 0.75]])
THREE = MarkovModel([[0.5, 0.3, 0.2]] * 3)
DRAWS = 6000
MAX_DEVIATION = 4.5


def search(beams: int, first: int = 0, number: int = DRAWS) -> dk.ConditionalPoissonBeams:
    return dk.ConditionalPoissonBeams(beams, seeds=range(first, first + number))


Beam = tuple[tuple[Text, float], ...]


def samples(model: dk.Model, chain: dk.Chain, beams: int, new: int) -> dict[frozenset[Text], float]:
    """The probability of every sample: all sets at every step, by their odds."""
    reached: dict[Beam, float] = {(((), 1.0),): 1.0}
    for _ in range(new):
        following: dict[Beam, float] = {}
        for beam, chance in reached.items():
            grown: list[tuple[Text, float]] = []
            for text, p in beam:
                if text[-1:] == (2,):
                    grown.append((text, p))
                    continue
                probs = next_probs(model, chain, [0], list(text), 1 + new)
                grown += [((*text, token), p * one) for token, one in enumerate(probs) if one > 0]
            sets = list(itertools.combinations(grown, min(beams, len(grown))))
            weights = [math.prod(p / (1 - p) for _, p in chosen) for chosen in sets]
            for chosen, weight in zip(sets, weights, strict=True):
                key = tuple(sorted(chosen))
                following[key] = following.get(key, 0.0) + chance * weight / sum(weights)
        reached = following
    found: dict[frozenset[Text], float] = {}
    for beam, chance in reached.items():
        key = frozenset(text for text, _ in beam)
        found[key] = found.get(key, 0.0) + chance
    return found


# By hand


def test_one_step_of_three_tokens_is_solved_by_hand() -> None:
    # Odds 1, 3/7 and 1/4; pairs 3/7, 1/4 and 3/28, so 12, 7 and 3 of 22.
    out = dk.decode(THREE, [[0]] * DRAWS, search(2), max_new_tokens=1)
    pairs = {((0,), (1,)): 12 / 22, ((0,), (2,)): 7 / 22, ((1,), (2,)): 3 / 22}
    assert deviation(Counter(drawn(out)), pairs, DRAWS) < MAX_DEVIATION  # likeliest first
    by_token = torch.tensor([19 / 22, 15 / 22, 10 / 22]).double()
    torch.testing.assert_close(out.report.probabilities, by_token[out.tokens[..., 0]], atol=1e-6, rtol=0)
    torch.testing.assert_close(out.score.exp(), torch.tensor([0.5, 0.3, 0.2])[out.tokens[..., 0]])
    assert out.report.threshold is None


def test_odds_are_accurate_for_probabilities_from_0_to_1() -> None:
    probs = torch.tensor([[0.0, 1e-300, 0.25, 0.5, 0.75, 1.0]], dtype=torch.float64)
    odds = log_odds(probs.log())[0]
    torch.testing.assert_close(
        odds[:5], torch.tensor([0.0, 1e-300, 1 / 3, 1.0, 3.0], dtype=torch.float64).log()
    )
    assert odds[5].item() == pytest.approx(53 * math.log(2))


def test_with_as_many_beams_as_hypotheses_all_are_returned_and_estimates_are_exact() -> None:
    texts = every_text(MARKOV, [0], dk.Chain(), 3, (2,))
    out = dk.decode(MARKOV, [[0], [0]], dk.ConditionalPoissonBeams(20, seeds=[1, 2]), max_new_tokens=3)
    for row in range(2):
        assert set(drawn(out)[row]) == texts.keys()
        assert out.valid[row].tolist() == [True] * 15 + [False] * 5
        torch.testing.assert_close(out.report.probabilities[row], out.valid[row].double())
        assert (out.report.log_inclusion[row] <= 0).all()  # after any rounding
        assert out.finish_reason[row][15:] == ["missing"] * 5
    assert (out.score[:, :15].diff() <= 0).all()  # likeliest first
    expected = expectation(texts, {text: float(len(text)) for text in texts})
    estimate = out.report.estimate(out.lengths.double())
    torch.testing.assert_close(estimate, torch.full((2,), expected).double())


# The distribution of samples

CASES = {
    "markov": (MARKOV, dk.Chain(), 2, 3),
    "hash": (HASH, dk.Chain(), 3, 2),
    "truncated and constrained": (HASH, dk.Chain(dk.TopK(3), dk.NoRepeatNGram(2), dk.Temperature(2.0)), 2, 3),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_samples_follow_the_conditional_poisson_design(case: tuple[dk.Model, dk.Chain, int, int]) -> None:
    model, chain, beams, new = case
    out = dk.decode(model, [[0]] * DRAWS, search(beams), chain, max_new_tokens=new)
    expected = samples(model, chain, beams, new)
    # Rare samples are counted together: counts below ten are not normal.
    rare = {key for key, p in expected.items() if p * DRAWS < 10}
    counts = Counter(None if key in rare else key for key in map(frozenset, drawn(out)))
    law: dict[frozenset[Text] | None, float] = {key: p for key, p in expected.items() if key not in rare}
    if rare:
        law[None] = sum(expected[key] for key in rare)
    assert deviation(counts, law, DRAWS) < MAX_DEVIATION


def test_samples_by_probabilities_in_place_of_odds_fail_the_same_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conditional_poisson_beams, "log_odds", lambda log_probs: log_probs)
    out = dk.decode(THREE, [[0]] * DRAWS, search(2), max_new_tokens=1)
    pairs = {((0,), (1,)): 12 / 22, ((0,), (2,)): 7 / 22, ((1,), (2,)): 3 / 22}
    assert deviation(Counter(drawn(out)), pairs, DRAWS) > 2 * MAX_DEVIATION


# Estimates


@pytest.mark.parametrize(
    ("model", "chain", "beams", "first"),
    [
        (MARKOV, dk.Chain(), 1, 10_000),
        (MARKOV, dk.Chain(), 3, 20_000),
        (HASH, dk.Chain(dk.TopP(0.8), dk.Temperature(1.5)), 3, 40_000),
    ],
)
def test_estimates_are_unbiased(model: dk.Model, chain: dk.Chain, beams: int, first: int) -> None:
    out = dk.decode(model, [[0]] * DRAWS, search(beams, first), chain, max_new_tokens=3)
    texts = every_text(model, [0], chain, 3, (2,))
    report = out.report
    assert standard_errors(report.estimate(out.valid.double()), 1.0) < 4
    lengths = {text: float(len(text)) for text in texts}
    assert standard_errors(report.estimate(out.lengths.double()), expectation(texts, lengths)) < 4
    entropy = expectation(texts, {text: math.log(p) for text, p in texts.items()})
    assert standard_errors(report.estimate(report.log_probs), entropy) < 4


def test_an_estimate_with_wrong_inclusion_probabilities_is_biased(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = conditional_poisson_beams.log_inclusion
    monkeypatch.setattr(
        conditional_poisson_beams, "log_inclusion", lambda *given: late(*given).clamp(min=-0.2)
    )
    out = dk.decode(MARKOV, [[0]] * DRAWS, search(2), max_new_tokens=3)
    assert standard_errors(out.report.estimate(out.valid.double()), 1.0) > 10


# Forced hypotheses


@pytest.mark.slow
def test_a_forced_hypothesis_is_in_every_sample_and_the_mean_estimates_its_inclusion_probability() -> None:
    expected = samples(MARKOV, dk.Chain(), 2, 3)
    for text in ([2], [0, 0, 0], [1, 0, 2]):
        forced = dk.ConditionalPoissonBeams(2, keep=[text] * DRAWS, seeds=range(DRAWS))
        out = dk.decode(MARKOV, [[0]] * DRAWS, forced, max_new_tokens=3)
        assert {tuple(texts[0]) for texts in out.hypotheses()} == {tuple(text)}
        assert all(len(set(texts)) == 2 for texts in drawn(out))
        inclusion = sum(p for sample, p in expected.items() if tuple(text) in sample)
        assert standard_errors(out.report.probabilities[:, 0], inclusion) < 4


def test_with_these_probabilities_the_horvitz_thompson_estimator_is_unbiased() -> None:
    texts = every_text(THREE, [0], dk.Chain(), 2)
    inclusion = {}
    for text in texts:
        forced = dk.ConditionalPoissonBeams(3, keep=[text] * 2000, seeds=range(2000))
        report = dk.decode(THREE, [[0]] * 2000, forced, max_new_tokens=2).report
        inclusion[text] = float(report.probabilities[:, 0].mean())
    out = dk.decode(THREE, [[0]] * DRAWS, search(3, 70_000), max_new_tokens=2)
    estimates = [sum(texts[text] / inclusion[text] for text in row) for row in drawn(out)]
    # The estimated probabilities have errors too, below 1 %.
    assert sum(estimates) / DRAWS == pytest.approx(1.0, abs=0.02)


def test_the_rest_of_a_sample_with_a_forced_hypothesis_follows_the_design() -> None:
    # Token 2 is forced; the odds of the others are 1 and 3/7.
    forced = dk.ConditionalPoissonBeams(2, keep=[[2]] * DRAWS, seeds=range(DRAWS))
    steps = list(decode_steps(THREE, [[0]] * DRAWS, forced, max_new_tokens=1))
    assert forced.stable_prefix(steps[-1].state) == []  # the order changes at the end
    out = dk.decode(THREE, [[0]] * DRAWS, forced, max_new_tokens=1)
    assert deviation(Counter(drawn(out)), {((2,), (0,)): 0.7, ((2,), (1,)): 0.3}, DRAWS) < MAX_DEVIATION


@pytest.mark.parametrize("text", [[0, 0], [0, 0, 2, 0], [2, 2], [0, 2, 0]])
def test_a_hypothesis_to_keep_must_be_complete_and_not_too_long(text: list[int]) -> None:
    forced = dk.ConditionalPoissonBeams(2, keep=[text], seeds=[1])
    with pytest.raises(dk.DecodekitError, match=r"hypothesis to keep (must|of prompt)"):
        dk.decode(MARKOV, [[0]], forced, max_new_tokens=3)


def test_a_banned_hypothesis_cannot_be_kept() -> None:
    forced = dk.ConditionalPoissonBeams(2, keep=[[2], [0, 1, 2]], seeds=[1, 2])
    with pytest.raises(dk.DecodingError, match="cannot emit the hypothesis to keep of prompt 1"):
        dk.decode(MARKOV, [[0], [0]], forced, dk.SuppressTokens([1]), max_new_tokens=3)


@pytest.mark.parametrize("keep", [3, "ab", [3], [[]], [["a"]], [[-1]], [[1.5]]])
def test_keep_must_be_a_list_of_ids_for_each_prompt(keep: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"ConditionalPoissonBeams: (keep|token ids) must"):
        dk.ConditionalPoissonBeams(2, keep=keep)


def test_keep_must_have_one_hypothesis_per_prompt_with_ids_of_the_model() -> None:
    with pytest.raises(dk.DecodekitError, match="got 1 for 2 prompts"):
        dk.decode(MARKOV, [[0], [1]], dk.ConditionalPoissonBeams(2, keep=[[2]]), max_new_tokens=3)
    with pytest.raises(dk.DecodekitError, match="ids below 3"):
        dk.decode(MARKOV, [[0]], dk.ConditionalPoissonBeams(2, keep=[[3]]), max_new_tokens=3)


# The contract


@pytest.mark.slow
def test_it_keeps_the_laws_of_decoders() -> None:
    check_decoder(
        lambda numbers: dk.ConditionalPoissonBeams(3, seeds=[31 * number for number in numbers]),
        max_examples=2,
    )
    check_decoder(
        lambda numbers: dk.ConditionalPoissonBeams(2, seeds=[31 * number for number in numbers]),
        stop=dk.EndIds(4) | dk.RepetitionLoop(2),
        max_examples=2,
    )
    check_decoder(
        lambda numbers: dk.ConditionalPoissonBeams(2, generator=torch.Generator().manual_seed(len(numbers))),
        batch_gives_alone=False,
        max_examples=2,
    )
    check_captures(dk.ConditionalPoissonBeams(4), [dk.NoRepeatNGram(2), dk.TopP(0.9)])
    check_captures(dk.ConditionalPoissonBeams(4, keep=[[5], [6, 7], [8]]), [dk.TopP(0.9)])


def test_the_stable_prefix_never_changes_and_is_not_empty_before_the_end() -> None:
    lengths = check_stable_prefix(search(2, number=60), HASH, dk.Chain(dk.TopK(2)), 5)
    lengths |= check_stable_prefix(search(3, number=60), MARKOV, dk.Chain(BansAllAfter(1)), 3)
    assert {0, 1, 2} <= lengths


def test_the_memory_of_criteria_follows_its_hypothesis() -> None:
    out = dk.decode(HASH, [[0]] * 300, search(3, number=300), max_new_tokens=4, end_ids=(), stop=SumIsFour())
    for texts, reasons in zip(out.hypotheses(), out.finish_reason, strict=True):
        for text, reason in zip(texts, reasons, strict=True):
            assert sum(text[:-1]) < 4
            assert (reason == "four") == (sum(text) >= 4)


def test_the_run_is_done_once_all_existing_hypotheses_are_finished() -> None:
    steps: list[int] = []
    short = MarkovModel([[0.5, 0.5], [0.5, 0.5]], end_ids=(0, 1))
    out = dk.decode(
        short, [[0]], dk.ConditionalPoissonBeams(4, seeds=[1]), max_new_tokens=9, on_step=steps.append
    )
    assert sorted(out.hypotheses()[0]) == [[0], [1]]
    assert steps == [1]


def test_the_memory_of_processors_follows_its_hypothesis() -> None:
    chain = dk.Chain(dk.NoRepeatNGram(2), dk.MirostatV2(1.0, 0.5))
    out = dk.decode(HASH, [[0]] * 300, search(3, number=300), chain, max_new_tokens=3)
    texts = every_text(HASH, [0], chain, 3, (2,))
    probs = torch.tensor([[texts[text] for text in row] for row in drawn(out)]).double()
    torch.testing.assert_close(out.report.log_probs.exp(), probs)
    torch.testing.assert_close(out.log_prob, dk.score(HASH, [[0]] * 300, out).log_prob)


def test_a_dead_end_is_not_valid_comes_last_and_leaves_estimates_of_the_others_unbiased() -> None:
    chain = dk.Chain(BansAllAfter(1))
    out = dk.decode(MARKOV, [[0]] * DRAWS, search(3, 50_000), chain, max_new_tokens=3)
    texts = every_text(MARKOV, [0], chain, 3, (2,))
    assert set(out.valid.sum(-1).tolist()) == {1, 2, 3}
    assert (out.valid.int().diff(dim=-1) <= 0).all()
    assert standard_errors(out.report.estimate(out.valid.double()), sum(texts.values())) < 4
    with pytest.raises(dk.DecodingError, match="for prompt 1,"):
        dk.decode(COIN, [[0], [1]], search(2, number=2), BansAllAfter(1), max_new_tokens=2)


def test_hypotheses_of_a_hundred_tokens_differ_and_have_finite_weights() -> None:
    out = dk.decode(
        HashModel(50, scale=1.0), [[1]], dk.ConditionalPoissonBeams(5, seeds=[3]), max_new_tokens=100
    )
    assert len(set(drawn(out)[0])) == 5
    assert out.report.log_weights.isfinite().all()
    assert (out.report.log_inclusion < 0).all()


def test_a_generator_gives_every_prompt_a_seed() -> None:
    first, second, third = (
        dk.decode(
            HASH,
            [[1], [1]],
            dk.ConditionalPoissonBeams(3, generator=torch.Generator().manual_seed(seed)),
            max_new_tokens=4,
        ).hypotheses()
        for seed in (3, 3, 4)
    )
    assert first == second != third


@pytest.mark.parametrize("beams", [0, -1, 1.5, True, "2"])
def test_beams_must_be_an_integer_of_at_least_one(beams: int) -> None:
    with pytest.raises(ValueError, match="ConditionalPoissonBeams: beams must be"):
        dk.ConditionalPoissonBeams(beams)


def test_randomness_comes_from_one_source_and_there_is_a_seed_per_prompt() -> None:
    with pytest.raises(ValueError, match="ConditionalPoissonBeams: randomness must come from one source"):
        dk.ConditionalPoissonBeams(2, generator=torch.Generator(), seeds=[1])
    with pytest.raises(ValueError, match="ConditionalPoissonBeams: seeds must be"):
        dk.ConditionalPoissonBeams(2, seeds=[2**63])
    with pytest.raises(dk.DecodekitError, match=r"ConditionalPoissonBeams: .* got 1 seeds for 2 prompts"):
        dk.decode(HASH, [[1], [2]], dk.ConditionalPoissonBeams(3, seeds=[1]), max_new_tokens=2)
