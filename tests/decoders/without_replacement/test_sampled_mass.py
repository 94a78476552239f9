"""Estimates of expectations from unique samples."""

import math

import pytest
import torch

import decodekit as dk
from decodekit import rng
from decodekit.testing import MarkovModel
from tests.decoders.enumerated import every_text

MODEL = MarkovModel([[0.8, 0.2], [0.7, 0.3]])
PROMPTS = 300


def report(probs: list[float], unsampled: list[float], remaining: float) -> dk.SampledMass:
    return dk.SampledMass(
        log_probs=torch.tensor([probs]).double().log(),
        unsampled=torch.tensor([unsampled]).double(),
        remaining=torch.tensor([remaining]).double(),
        dead_ends=[[]],
    )


def test_weights_are_the_probabilities_where_nothing_remains() -> None:
    weights = report([0.75, 0.25, 0.0], [1.0, 0.25, 0.0], 0.0).weights()
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25, 0.0]]).double())


def test_a_weight_is_the_probability_over_that_of_arriving_before_the_next_draw() -> None:
    """One sample of 0.6: the next arrives at E_1 / 1 + E_2 / 0.4, which gives the weight."""
    waits = torch.empty(5, 1, 2, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(1))
    times = [wait[0][0] + wait[0][1] / 0.4 for wait in waits.tolist()]
    expected = sum(0.6 / (1 - math.exp(-0.6 * time)) for time in times) / 5
    generator = torch.Generator().manual_seed(1)
    weights = report([0.6], [1.0], 0.4).weights(repetitions=5, generator=generator)
    assert weights.item() == pytest.approx(expected, rel=1e-6)


def test_dead_ends_take_part_in_the_race_and_the_last_sample_ends_it() -> None:
    """Samples of 0.4 and 0.2, a dead end of 0.3: the last arrives at E_1 / 1 + E_2 / 0.3 + E_3 / 0.6."""
    mass = dk.SampledMass(
        log_probs=torch.tensor([[0.4, 0.2]]).double().log(),
        unsampled=torch.tensor([[1.0, 0.3]]).double(),
        remaining=torch.tensor([0.1]).double(),
        dead_ends=[[0.6]],
    )
    waits = torch.empty(5, 1, 4, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(1))
    times = [first / 1.0 + last / 0.3 + dead / 0.6 for ((first, last, dead, _),) in waits.tolist()]
    expected = sum(0.4 / (1 - math.exp(-0.4 * time)) for time in times) / 5
    weights = mass.weights(repetitions=5, generator=torch.Generator().manual_seed(1))
    assert weights[0].tolist() == pytest.approx([expected, 0.0], rel=1e-6)
    assert float(mass.weights(normalize=True)[0, 1]) > 0


@pytest.mark.parametrize("number", [1, 2, 4])
def test_the_estimate_is_unbiased_with_dead_ends(number: int) -> None:
    """Races of six hypotheses and a dead end, the last one, drawn without a model."""
    probs = torch.tensor([0.09, 0.09, 0.12, 0.2, 0.1, 0.1, 0.3], dtype=torch.float64)
    values = torch.tensor([1.0, 2.0, 1.0, 0.0, 1.0, 0.0]).double()
    generator = torch.Generator().manual_seed(1)
    order = rng.draw_several(probs.expand(10_000, -1), 7, generator)
    unsampled = 1 - probs[order].cumsum(-1) + probs[order]
    ends = order < 6
    last = (ends.cumsum(-1) == number).int().argmax(-1, keepdim=True)
    drawn = order[ends].view(-1, 6)[:, :number]
    mass = dk.SampledMass(
        log_probs=probs[drawn].log(),
        unsampled=unsampled[ends].view(-1, 6)[:, :number],
        remaining=(unsampled - probs[order]).gather(1, last)[:, 0],
        dead_ends=[
            [mass] if place < final else []
            for mass, place, final in zip(
                unsampled[~ends].tolist(), ends.int().argmin(-1).tolist(), last[:, 0].tolist(), strict=True
            )
        ],
    )
    estimates = mass.expectation(values[drawn], generator=generator)
    exact = float((probs[:6] * values).sum())
    assert abs(float(estimates.mean()) - exact) < 4 * float(estimates.std()) / 100


def test_weights_of_probabilities_that_underflow_are_the_limit() -> None:
    mass = report([1.0], [1.0], 1.0)
    unlikely = dk.SampledMass(
        log_probs=torch.tensor([[-5000.0, -690.0]]).double(),
        unsampled=torch.ones(1, 2).double(),
        remaining=torch.ones(1).double(),
        dead_ends=[[]],
    )
    weights = unlikely.weights(generator=torch.Generator().manual_seed(1))
    assert weights[0, 0].item() == pytest.approx(weights[0, 1].item(), rel=1e-9)
    assert mass.weights().isfinite().all()
    torch.testing.assert_close(unlikely.weights(normalize=True), torch.tensor([[0.5, 0.5]]).double())


@pytest.fixture(scope="module")
def drawn() -> dk.Decoded:
    """Two unique samples for each of many prompts."""
    sample = dk.UniqueSample(2, seeds=range(PROMPTS))
    return dk.decode(MODEL, [[0]] * PROMPTS, sample, max_new_tokens=2)


def estimates(out: dk.Decoded, *, normalize: bool = False) -> torch.Tensor:
    """The estimated number of tokens 1 among two tokens, per prompt."""
    assert isinstance(out.report, dk.SampledMass)
    generator = torch.Generator().manual_seed(7)
    values = (out.tokens == 1).double().sum(-1)
    return out.report.expectation(values, normalize=normalize, generator=generator)


def exact() -> float:
    return sum(p * text.count(1) for text, p in every_text(MODEL, [0], dk.Chain(), 2).items())


def standard_errors(values: torch.Tensor) -> float:
    """The distance of the mean from the exact expectation, in standard errors."""
    return abs(float(values.mean()) - exact()) / float(values.std() / len(values) ** 0.5)


def test_the_estimate_is_unbiased_and_varies_less_than_that_of_independent_samples(drawn: dk.Decoded) -> None:
    values = estimates(drawn)
    assert standard_errors(values) < 4  # exceeded once in 16,000
    out = dk.decode(MODEL, [[0]] * PROMPTS, dk.Sample(2, seeds=range(PROMPTS)), max_new_tokens=2)
    independent = (out.tokens == 1).double().sum(-1).mean(-1)
    normalized = estimates(drawn, normalize=True)
    assert normalized.var() < values.var()
    assert normalized.var() < independent.var()


def test_a_plain_mean_of_unique_samples_is_biased(drawn: dk.Decoded) -> None:
    assert standard_errors((drawn.tokens == 1).double().sum(-1).mean(-1)) > 4


def test_the_estimate_is_exact_where_nothing_remains_and_ignores_missing_samples() -> None:
    out = dk.decode(MODEL, [[0]], dk.UniqueSample(12, seeds=[1]), max_new_tokens=2)
    values = (out.tokens == 1).double().sum(-1).masked_fill(~out.valid, torch.nan)
    assert int(out.valid.sum()) == 4
    assert out.report.expectation(values).item() == pytest.approx(exact(), rel=1e-6)


@pytest.mark.parametrize("repetitions", [0, -1, 1.5, True])
def test_repetitions_must_be_an_integer_of_at_least_one(repetitions: int) -> None:
    with pytest.raises(ValueError, match="SampledMass: repetitions must be"):
        report([1.0], [1.0], 0.0).weights(repetitions=repetitions)
