"""Stochastic beam search: solved by hand, against enumeration, against AllenNLP's recorded results."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import decodekit as dk
from decodekit import rng
from decodekit.decoders.without_replacement import stochastic_beam_search
from decodekit.decoders.without_replacement.stochastic_beam_search import log_survival, with_maximum
from decodekit.testing import HashModel, MarkovModel, check_captures, check_decoder
from decodekit.testing.strategies import prompts
from tests.decoders.enumerated import every_text
from tests.decoders.without_replacement.theory import (
    HASH,
    MARKOV,
    BansAllAfter,
    SumIsFour,
    check_stable_prefix,
    deviation,
    drawn,
    expectation,
    inclusion,
    orders,
    standard_errors,
)
from tests.recorded.recorded import MarkovCase, markov_cases

COIN = MarkovModel([[0.25, 0.75], [0.25, 0.75]])
DRAWS = 6000
# In standard deviations. Among the hundreds of counts here, a correct sampler exceeds this for one in some
# hundred sets of seeds, and the seeds are fixed. The broken samplers below exceed three times as much.
MAX_DEVIATION = 4.5


def search(beams: int, first: int = 0, number: int = DRAWS) -> dk.StochasticBeamSearch:
    return dk.StochasticBeamSearch(beams, seeds=range(first, first + number))


# By hand


def test_both_sides_of_a_coin_are_returned_and_a_third_hypothesis_is_missing() -> None:
    out = dk.decode(COIN, [[0]], dk.StochasticBeamSearch(3, seeds=[1]), max_new_tokens=1)
    assert sorted(out.hypotheses()[0]) == [[0], [1]]
    assert out.finish_reason == [["length", "length", "missing"]]
    assert out.valid.tolist() == [[True, True, False]]
    assert out.lengths.tolist() == [[1, 1, 0]]
    assert out.score[0, 2] == out.log_prob[0, 2] == -torch.inf
    report = out.report
    assert isinstance(report, dk.Inclusion)
    assert report.threshold is not None
    assert report.threshold.tolist() == [-torch.inf]
    assert report.probabilities.tolist() == [[1.0, 1.0, 0.0]]
    sides = out.tokens[0, :2, 0]
    torch.testing.assert_close(report.log_probs[0, :2].exp(), torch.tensor([0.25, 0.75]).double()[sides])
    # Every hypothesis was drawn, so the estimate is the expectation, normalized or not.
    for normalize in (False, True):
        estimate = report.estimate(out.tokens[..., 0].double(), normalize=normalize)
        torch.testing.assert_close(estimate, torch.tensor([0.75]).double())


def test_the_score_is_the_perturbed_log_probability() -> None:
    # One step: the root's Gumbel variable, and those of its children given their maximum, in plain Python.
    seed, root = 5, rng.gumbel_seeded(torch.tensor([5]), torch.tensor([-1]), torch.tensor(0), 1).item()
    noise = rng.gumbel_seeded(torch.tensor([seed]), torch.tensor([0]), torch.tensor(0), 2)[0].tolist()
    free = [math.log(p) + g for p, g in zip([0.25, 0.75], noise, strict=True)]
    moved = [-math.log(math.exp(-root) - math.exp(-max(free)) + math.exp(-g)) for g in free]
    out = dk.decode(COIN, [[0]], dk.StochasticBeamSearch(2, seeds=[seed]), max_new_tokens=1)
    assert out.score[0].tolist() == pytest.approx(sorted(moved, reverse=True), rel=1e-6)
    assert out.hypotheses()[0] == [[side] for side in sorted((0, 1), key=lambda side: -moved[side])]


def test_log_probs_are_the_models_and_the_report_has_those_of_the_sampled_distribution() -> None:
    chain = [dk.TopK(2), dk.Temperature(0.5)]
    out = dk.decode(HASH, [[1]], dk.StochasticBeamSearch(3, seeds=[4]), chain, max_new_tokens=3)
    torch.testing.assert_close(out.log_prob, dk.score(HASH, [[1]], out).log_prob)
    texts = every_text(HASH, [1], dk.Chain(*chain), 3, (2,))
    probs = [texts[text] for text in drawn(out)[0]]
    torch.testing.assert_close(out.report.log_probs[0].exp(), torch.tensor(probs).double())


# Gumbel variables with a given maximum


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=1, max_size=5), st.floats(-20, 20))
def test_the_maximum_becomes_exactly_the_target_and_the_others_follow_the_formula(
    values: list[float], target: float
) -> None:
    given_values = torch.tensor([[values]], dtype=torch.float64)
    moved = with_maximum(given_values, torch.tensor([[target]], dtype=torch.float64))[0, 0]
    assert moved.max().item() == target
    for before, after in zip(values, moved.tolist(), strict=True):
        # The tolerance is the rounding of e^-T beside e^-Z and e^-G in double precision.
        expected = math.exp(-target) - math.exp(-max(values)) + math.exp(-before)
        assert math.exp(-after) == pytest.approx(expected, rel=1e-9, abs=1e-9 * math.exp(-before))


@pytest.mark.parametrize("target", [-1e4, -700.0, 0.0, 700.0, 1e4])
@pytest.mark.parametrize("lowest", [-1e5, -750.0, -1.0])
def test_the_transformation_neither_overflows_nor_changes_the_order(target: float, lowest: float) -> None:
    values = torch.tensor([[[lowest, lowest / 2, 3.0, lowest / 3, -torch.inf]]], dtype=torch.float64)
    moved = with_maximum(values, torch.tensor([[target]], dtype=torch.float64))[0, 0]
    assert not moved.isnan().any()
    assert moved[2] == target
    assert moved[4] == -torch.inf
    assert moved[:4].isfinite().all()
    assert moved[0] <= moved[1] <= moved[3] <= moved[2]


def test_values_of_minus_infinity_stay_minus_infinity() -> None:
    values = torch.full((1, 2, 3), -torch.inf, dtype=torch.float64)
    values[0, 0] = 1.0
    moved = with_maximum(values, torch.tensor([[2.0, 2.0]]).double())
    assert moved[0, 0].tolist() == [2.0] * 3
    assert moved[0, 1].tolist() == [-torch.inf] * 3
    nowhere = with_maximum(values, torch.full((1, 2), -torch.inf, dtype=torch.float64))
    assert (nowhere == -torch.inf).all()


@pytest.mark.parametrize("excess", [-6.0, -3.0, 0.0, 3.0, 29.9, 30.1, 300.0, 2000.0])
def test_the_survival_function_is_accurate_in_the_tails(excess: float) -> None:
    got = log_survival(torch.tensor([[excess]], dtype=torch.float64)).item()
    assert log_survival(torch.tensor([[-torch.inf, -800.0]]).double()).tolist() == [[0.0, 0.0]]
    if excess > 20:  # 1 - exp(-x) = x - x^2/2 + ...
        assert got == pytest.approx(-excess + math.log1p(-math.exp(-excess) / 2), rel=1e-12)
    else:
        assert got == pytest.approx(math.log(-math.expm1(-math.exp(-excess))), rel=1e-12, abs=1e-300)


# The distribution of samples

CASES = {
    "markov, one": (MARKOV, dk.Chain(), 1, 3),
    "markov, pairs": (MARKOV, dk.Chain(), 2, 3),
    "hash, pairs": (HASH, dk.Chain(), 2, 2),
    "hash, triples": (HASH, dk.Chain(), 3, 2),
    "truncated and constrained": (HASH, dk.Chain(dk.TopK(3), dk.NoRepeatNGram(2), dk.Temperature(2.0)), 2, 3),
}


@pytest.mark.mostly_slow(5)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_hypotheses_are_sampled_without_replacement_in_the_order_of_their_scores(
    case: tuple[dk.Model, dk.Chain, int, int],
) -> None:
    model, chain, beams, new = case
    out = dk.decode(model, [[0]] * DRAWS, search(beams), chain, max_new_tokens=new)
    texts = every_text(model, [0], chain, new, (2,))
    counts = Counter(itertools.chain.from_iterable(drawn(out)))
    assert deviation(counts, inclusion(texts, beams), DRAWS) < MAX_DEVIATION
    if beams < 3:
        assert deviation(Counter(drawn(out)), orders(texts, beams), DRAWS) < MAX_DEVIATION


def test_children_not_conditioned_on_their_parent_fail_the_same_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stochastic_beam_search, "with_maximum", lambda perturbed, maximum: perturbed)  # noqa: ARG005
    out = dk.decode(MARKOV, [[0]] * DRAWS, search(2), max_new_tokens=3)
    texts = every_text(MARKOV, [0], dk.Chain(), 3, (2,))
    assert deviation(Counter(drawn(out)), orders(texts, 2), DRAWS) > 3 * MAX_DEVIATION


def test_the_best_score_equals_that_of_the_root_at_any_length() -> None:
    best = [
        dk.decode(HASH, [[1]] * 50, search(3, number=50), max_new_tokens=new).score[:, 0] for new in (1, 2, 5)
    ]
    assert torch.equal(best[0], best[1])
    assert torch.equal(best[0], best[2])
    # It is a standard Gumbel variable: e^-G is exponential of rate 1.
    many = dk.decode(HASH, [[1]] * DRAWS, search(1), max_new_tokens=3).score[:, 0]
    assert standard_errors((-many.double()).exp(), 1.0) < MAX_DEVIATION
    assert standard_errors((-2 * many.double()).exp(), math.gamma(3)) < MAX_DEVIATION


@settings(max_examples=20, deadline=None)
@given(batch=prompts(vocab=5, max_batch=2), seed=st.integers(0, 2**31), beams=st.integers(1, 6))
def test_a_smaller_sample_is_a_prefix_of_a_larger_one_and_the_threshold_is_the_next_score(
    batch: list[list[int]], seed: int, beams: int
) -> None:
    model = HashModel(5, seed, scale=1.0, end_ids=(2,))
    seeds = range(seed, seed + len(batch))
    fewer = dk.decode(model, batch, dk.StochasticBeamSearch(beams, seeds=seeds), max_new_tokens=3)
    more = dk.decode(model, batch, dk.StochasticBeamSearch(beams + 1, seeds=seeds), max_new_tokens=3)
    assert fewer.hypotheses() == [texts[:beams] for texts in more.hypotheses()]
    assert torch.equal(fewer.score, more.score[:, :beams])
    assert torch.equal(fewer.report.threshold.float(), more.score[:, beams])
    assert (fewer.score > fewer.report.threshold[:, None]).all()


# Estimates


@pytest.mark.parametrize(
    ("model", "chain", "beams", "first"),
    [
        (MARKOV, dk.Chain(), 1, 10_000),
        (MARKOV, dk.Chain(), 3, 20_000),
        (HASH, dk.Chain(), 2, 30_000),
        (HASH, dk.Chain(dk.TopP(0.8), dk.Temperature(1.5)), 4, 40_000),
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


def test_an_estimate_that_counts_the_threshold_as_a_sample_is_biased() -> None:
    out = dk.decode(MARKOV, [[0]] * DRAWS, search(3), max_new_tokens=3)
    last = out.score[:, 2].double()  # in the paper k - 1 are drawn and the k-th is their threshold
    wrong = dk.Inclusion(
        log_probs=out.report.log_probs, log_inclusion=log_survival(last[:, None] - out.report.log_probs)
    )
    assert standard_errors(wrong.estimate(out.valid.double()), 1.0) > 10
    right = wrong.log_weights.exp()[:, :2].sum(-1)
    assert standard_errors(right, 1.0) < 4


def test_estimates_with_a_fixed_root_are_biased(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_noise = rng.gumbel_seeded

    def fixed_root(seeds: Tensor, streams: Tensor, step: Tensor, number: int) -> Tensor:
        noise = drawn_noise(seeds, streams, step, number)
        return torch.zeros_like(noise) if number == 1 else noise

    monkeypatch.setattr(rng, "gumbel_seeded", fixed_root)
    out = dk.decode(MARKOV, [[0]] * DRAWS, search(2), max_new_tokens=3)
    assert standard_errors(out.report.estimate(out.valid.double()), 1.0) > 10


def test_a_normalised_estimate_is_a_mean_of_the_values() -> None:
    out = dk.decode(HASH, [[0]] * 50, search(3, number=50), max_new_tokens=4)
    lengths = out.lengths.double()
    estimate = out.report.estimate(lengths, normalize=True)
    assert (estimate >= lengths.amin(-1) - 1e-12).all()
    assert (estimate <= lengths.amax(-1) + 1e-12).all()


# Fewer hypotheses than beams


@pytest.mark.parametrize("beams", [15, 40])
def test_with_as_many_beams_as_hypotheses_all_are_returned_and_estimates_are_exact(beams: int) -> None:
    texts = every_text(MARKOV, [0], dk.Chain(), 3, (2,))
    assert len(texts) == 15
    out = dk.decode(MARKOV, [[0], [0]], dk.StochasticBeamSearch(beams, seeds=[1, 2]), max_new_tokens=3)
    for row in range(2):
        assert set(drawn(out)[row]) == texts.keys()
        assert out.valid[row].tolist() == [True] * 15 + [False] * (beams - 15)
        assert out.report.probabilities[row].tolist() == [1.0] * 15 + [0.0] * (beams - 15)
    lengths = out.report.estimate(out.lengths.double())
    expected = expectation(texts, {text: float(len(text)) for text in texts})
    torch.testing.assert_close(lengths, torch.full((2,), expected).double())


def test_the_only_hypothesis_is_returned_once() -> None:
    only = MarkovModel([[1.0]])
    out = dk.decode(only, [[0]], dk.StochasticBeamSearch(3, seeds=[1]), max_new_tokens=4)
    assert out.hypotheses() == [[[0, 0, 0, 0]]]
    assert out.report.probabilities.tolist() == [[1.0, 0.0, 0.0]]


def test_a_dead_end_is_not_valid_comes_last_and_leaves_estimates_of_the_others_unbiased() -> None:
    chain = dk.Chain(BansAllAfter(1))
    # Two prefixes are dead ends, 1 and 0 1, so at least one of three hypotheses is complete.
    out = dk.decode(MARKOV, [[0]] * DRAWS, search(3, 50_000), chain, max_new_tokens=3)
    texts = every_text(MARKOV, [0], chain, 3, (2,))
    assert set(itertools.chain.from_iterable(drawn(out))) <= texts.keys()
    assert set(out.valid.sum(-1).tolist()) == {1, 2, 3}
    assert (out.valid.int().diff(dim=-1) <= 0).all()  # valid ones first
    assert {reason for row in out.finish_reason for reason in row} == {"end", "length", "missing"}
    assert (out.report.probabilities[~out.valid] == 0).all()
    assert (out.report.threshold > -torch.inf).any()
    # The estimate loses the probability of dead ends, and nothing else.
    assert sum(texts.values()) < 0.95
    assert standard_errors(out.report.estimate(out.valid.double()), sum(texts.values())) < 4


def test_an_error_names_the_prompt_with_dead_ends_only() -> None:
    with pytest.raises(dk.DecodingError, match="for prompt 1,"):
        dk.decode(COIN, [[0], [1]], search(2, number=2), BansAllAfter(1), max_new_tokens=2)


# Long hypotheses


def test_hypotheses_of_a_hundred_tokens_differ_and_have_finite_weights() -> None:
    model = HashModel(50, scale=1.0)
    out = dk.decode(model, [[1]], dk.StochasticBeamSearch(5, seeds=[3]), max_new_tokens=100)
    assert len(set(drawn(out)[0])) == 5
    report = out.report
    assert (report.log_probs < -250).all()
    assert report.log_weights.isfinite().all()
    assert (out.score[0].diff() < 0).all()
    # Hypotheses this unlikely all have the weight e^threshold, so their weighted mean is a plain one.
    torch.testing.assert_close(report.log_weights, report.threshold[:, None].expand(1, 5))


# The contract


@pytest.mark.slow
def test_it_keeps_the_laws_of_decoders() -> None:
    check_decoder(
        lambda numbers: dk.StochasticBeamSearch(3, seeds=[31 * number for number in numbers]), max_examples=8
    )
    check_decoder(
        lambda numbers: dk.StochasticBeamSearch(2, seeds=[31 * number for number in numbers]),
        stop=dk.EndIds(4) | dk.RepetitionLoop(2),
        max_examples=5,
    )
    check_decoder(
        lambda numbers: dk.StochasticBeamSearch(2, generator=torch.Generator().manual_seed(len(numbers))),
        batch_gives_alone=False,
        max_examples=5,
    )
    check_captures(dk.StochasticBeamSearch(4), [dk.NoRepeatNGram(2), dk.TopP(0.9)])


def test_criteria_apply_to_every_hypothesis_and_a_finished_one_keeps_its_place() -> None:
    out = dk.decode(
        HASH, [[0]] * 300, search(3, number=300), max_new_tokens=4, end_ids=(), stop=dk.EndIds((0, 2))
    )
    for texts, reasons in zip(out.hypotheses(), out.finish_reason, strict=True):
        for text, reason in zip(texts, reasons, strict=True):
            assert not {0, 2} & set(text[:-1])
            assert (reason == "length") == (text[-1] not in {0, 2})
    as_ends = dk.decode(HASH, [[0]] * 300, search(3, number=300), max_new_tokens=4, end_ids=(0, 2))
    assert as_ends.hypotheses() == out.hypotheses()


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
        short, [[0]], dk.StochasticBeamSearch(4, seeds=[1]), max_new_tokens=9, on_step=steps.append
    )
    assert sorted(out.hypotheses()[0]) == [[0], [1]]
    assert steps == [1]


def test_the_memory_of_processors_follows_its_hypothesis() -> None:
    chain = dk.Chain(dk.NoRepeatNGram(2), dk.MirostatV2(1.0, 0.5))
    out = dk.decode(HASH, [[0]] * 300, search(3, number=300), chain, max_new_tokens=3)
    texts = every_text(HASH, [0], chain, 3, (2,))
    probs = torch.tensor([[texts[text] for text in row] for row in drawn(out)]).double()
    torch.testing.assert_close(out.report.log_probs.exp(), probs)


def test_a_generator_gives_every_prompt_a_seed() -> None:
    first, second, third = (
        dk.decode(
            HASH,
            [[1], [1]],
            dk.StochasticBeamSearch(3, generator=torch.Generator().manual_seed(seed)),
            max_new_tokens=4,
        )
        for seed in (3, 3, 4)
    )
    assert torch.equal(first.score, second.score)
    assert not torch.equal(first.score, third.score)
    assert not torch.equal(first.score[0], first.score[1])


@pytest.mark.parametrize("beams", [0, -1, 1.5, True, "2"])
def test_beams_must_be_an_integer_of_at_least_one(beams: int) -> None:
    with pytest.raises(ValueError, match="StochasticBeamSearch: beams must be"):
        dk.StochasticBeamSearch(beams)


def test_only_one_source_of_randomness_is_accepted() -> None:
    with pytest.raises(ValueError, match="StochasticBeamSearch: randomness must come from one source"):
        dk.StochasticBeamSearch(2, generator=torch.Generator(), seeds=[1])
    with pytest.raises(ValueError, match="StochasticBeamSearch: generator must be"):
        dk.StochasticBeamSearch(2, generator=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("seeds", [[2**63], [1.5], ["a"], 0, 1.5, ""])
def test_seeds_must_be_64_bit_integers(seeds: list[int]) -> None:
    with pytest.raises(ValueError, match="StochasticBeamSearch: seeds must be"):
        dk.StochasticBeamSearch(2, seeds=seeds)


def test_there_must_be_a_seed_a_prompt() -> None:
    with pytest.raises(dk.DecodekitError, match=r"StochasticBeamSearch: .* got 1 seeds for 2 prompts"):
        dk.decode(HASH, [[1], [2]], dk.StochasticBeamSearch(3, seeds=[1]), max_new_tokens=2)


# Against AllenNLP


class HistoryRecorder(dk.StatelessProcessor):
    """Changes nothing, and records the new tokens of every row."""

    texts: list[list[int]]

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        self.texts = [tokens[1 : int(history.position)] for tokens in history.tokens.tolist()]
        return scores


@pytest.mark.parametrize(
    "case", [case for case in markov_cases("gumbel") if case.per_node == case.beams], ids=str
)
def test_with_allennlps_noise_the_sequences_are_those_of_allennlp(
    case: MarkovCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = HistoryRecorder()

    def recorded_noise(seeds: Tensor, streams: Tensor, step: Tensor, number: int) -> Tensor:  # noqa: ARG001
        if streams[0] < 0:
            return torch.zeros(len(seeds), 1).double()  # AllenNLP's root is not random
        noise = []
        for row, text in enumerate(recorder.texts):
            whole = case.found["noise"][row // case.beams]
            noise.append(whole.get(",".join(map(str, text)), [0.0] * number))
        return torch.tensor(noise).double()

    monkeypatch.setattr(rng, "gumbel_seeded", recorded_noise)
    model = MarkovModel(case.matrix, end_ids=(0,))
    out = dk.decode(
        model, case.prompts, dk.StochasticBeamSearch(case.beams), recorder, max_new_tokens=case.steps
    )
    for row, expected in enumerate(case.sequences):
        # AllenNLP orders by log-probability, in which some of these are tied.
        found = dict(zip(drawn(out)[row], zip(out.score[row], out.log_prob[row], strict=True), strict=True))
        assert found.keys() == set(map(tuple, expected))
        for rank, text in enumerate(expected):
            perturbed, log_prob = found[tuple(text)]
            assert perturbed.item() == pytest.approx(case.found["perturbed"][row][rank], rel=1e-5, abs=1e-5)
            assert log_prob.item() == pytest.approx(case.found["scores"][row][rank], rel=1e-5)


@pytest.mark.mostly_slow(5)
@pytest.mark.parametrize("case", markov_cases("inclusion"), ids=str)
def test_inclusion_frequencies_are_those_of_allennlp(case: MarkovCase) -> None:
    model = MarkovModel(case.matrix, end_ids=(0,))
    out = dk.decode(model, case.prompts * DRAWS, search(case.beams, 60_000), max_new_tokens=case.steps)
    counts = Counter(itertools.chain.from_iterable(drawn(out)))
    known = [tuple(text) for text in case.sequences[0]]
    assert deviation(counts, dict(zip(known, case.found["exact"], strict=True)), DRAWS) < MAX_DEVIATION
