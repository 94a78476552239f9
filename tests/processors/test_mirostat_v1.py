import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import HashModel, check_processor
from tests.processors.parity import LAWS
from tests.processors.reference import BANNED, history_of, probabilities
from tests.processors.test_mirostat_v2 import run, trajectories


def estimate_k(scores: list[float], mu: float, m: int) -> float:
    """The paper's k before it is rounded."""
    vocab = len(scores)
    probs = sorted((prob for prob in probabilities(scores) if prob > 0), reverse=True)[:m]
    if len(probs) < 2:
        return math.inf
    steps = [math.log((i + 1) / i) for i in range(1, len(probs))]
    drops = [math.log(probs[i - 1] / probs[i]) for i in range(1, len(probs))]
    s = sum(t * b for t, b in zip(steps, drops, strict=True)) / sum(t**2 for t in steps)
    epsilon = s - 1
    try:
        return float((epsilon * 2**mu / (1 - vocab**-epsilon)) ** (1 / s))
    except OverflowError:
        return math.inf


def zipf(exponent: float, vocab: int) -> torch.Tensor:
    return -exponent * torch.arange(1.0, vocab + 1).log()[None]


def first_kept(processor: dk.MirostatV1, scores: torch.Tensor) -> int:
    """The number of tokens kept at the first step."""
    history = history_of([[0]], 1)
    return int((processor.apply(history, scores, processor.init(history))[0] > BANNED).sum())


def test_mirostat_v1_keeps_the_papers_k_of_a_zipf_distribution() -> None:
    # s is 2, epsilon 1: k = (2**mu / (1 - 1/100)) ** (1/2), with mu = 6: 8.04.
    assert first_kept(dk.MirostatV1(3.0), zipf(2, 100)) == 9
    # s is 1/2, epsilon -1/2: k = (-1/2 * 2**4 / (1 - 10)) ** 2 = 0.79.
    assert first_kept(dk.MirostatV1(2.0), zipf(0.5, 100)) == 2


def test_mirostat_v1_takes_the_limit_where_the_exponent_is_one() -> None:
    # k = 2**mu / ln N = 64 / ln 100 = 13.9.
    assert first_kept(dk.MirostatV1(3.0), zipf(1, 100)) == 15
    # At odds of exactly 2, which takes float64, s is exactly 1: k = 2**0.2 / ln 4 = 0.83.
    exact = torch.tensor([[math.log(2), 0.0, BANNED, BANNED]], dtype=torch.float64)
    assert dk.MirostatV1(0.1)._tokens_to_keep(history_of([[0]], 1), exact, torch.tensor([[0.2]])).item() == 2


def test_mirostat_v1_estimates_the_exponent_from_m_tokens_that_are_not_banned() -> None:
    # The first two give s = 2, the others less.
    scores = torch.cat([zipf(2, 100)[:, :2], zipf(0.3, 98) + zipf(2, 100)[:, 1:2]], 1)
    assert first_kept(dk.MirostatV1(3.0, m=2), scores) == 9
    assert first_kept(dk.MirostatV1(3.0, m=50), scores) == round(estimate_k(scores[0].tolist(), 6, 50)) + 1
    banned = torch.full((1, 100), BANNED)
    spread = torch.stack([zipf(2, 100), banned], -1).view(1, -1)
    assert first_kept(dk.MirostatV1(3.0), spread) == round((2**6 / (1 - 1 / 200)) ** 0.5) + 1


def test_mirostat_v1_keeps_all_of_equally_likely_tokens_and_of_a_single_one() -> None:
    assert first_kept(dk.MirostatV1(0.1), torch.zeros(1, 20)) == 20
    assert first_kept(dk.MirostatV1(0.1), torch.zeros(1, 1)) == 1
    assert first_kept(dk.MirostatV1(0.1), torch.tensor([[BANNED, 1.0, BANNED]])) == 1
    assert first_kept(dk.MirostatV1(0.1), torch.full((1, 3), BANNED)) == 0


@LAWS
@given(trajectories(), st.floats(0.2, 4), st.floats(0.05, 1.5), st.integers(2, 14))
def test_mirostat_v1_is_the_slow_reference_over_a_whole_trajectory(
    trajectory: tuple[torch.Tensor, list[int]], tau: float, eta: float, m: int
) -> None:
    steps, picks = trajectory
    emitted, bounds, out = run(dk.MirostatV1(tau, eta, m), steps, picks)
    for row, tokens in enumerate(emitted):
        mu = 2 * tau
        for step, token in enumerate(tokens):
            scores, processed = steps[step, row].tolist(), out[step, row].tolist()
            # Sums of logarithms in float32.
            assert bounds[row][step] == pytest.approx(mu, rel=1e-4, abs=1e-4)
            k = min(estimate_k(scores, mu, m), len(scores))
            bar = sorted(scores, reverse=True)[min(round(k) + 1, len(scores)) - 1]
            # Half way between two integers the error of mu decides.
            if abs(k % 1 - 0.5) > 1e-3 * (1 + k):
                assert processed == [score if score >= bar else BANNED for score in scores]
            mu -= eta * (-math.log2(probabilities(scores)[token]) - tau)


def test_mirostat_v1_brings_the_mean_surprise_to_the_target() -> None:
    model, sample = HashModel(100, seed=1), dk.Sample(2, seeds=[5])
    out = dk.decode(model, [[1]], sample, dk.MirostatV1(3.0, 0.5), max_new_tokens=150)
    bits = -out.log_prob / math.log(2) / 150
    # The errors add up to the change of mu over eta, a few bits in 150.
    assert bits[0].tolist() == pytest.approx([3.0, 3.0], abs=0.1)


def test_mirostat_v1_takes_one_number_per_prompt() -> None:
    steps = (zipf(1.2, 30) + torch.randn(5, 2, 30, generator=torch.Generator().manual_seed(0))).float()
    picks = [7, 1, 0, 2, 1]
    together = run(dk.MirostatV1([3.0, 2.0], [0.5, 0.25], [2, 20]), steps, picks)
    for row, (tau, eta, m) in enumerate([(3.0, 0.5, 2), (2.0, 0.25, 20)]):
        emitted, bounds, out = run(dk.MirostatV1(tau, eta, m), steps[:, row : row + 1], picks)
        assert torch.equal(out[:, 0], together[2][:, row])
        assert emitted[0] == together[0][row]
        assert bounds[0] == together[1][row]


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, "1", None, True, [1.0, 0.0]])
@pytest.mark.parametrize("name", ["tau", "eta"])
def test_mirostat_v1_refuses_what_is_not_a_finite_number_above_zero(name: str, value: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=rf"^MirostatV1: {name} must be a finite number above 0, got"):
        dk.MirostatV1(**{"tau": 3.0, "eta": 0.1, name: value})


@pytest.mark.parametrize("m", [1, 0, -1, 2.0, "3", None, True, [2, 1]])
def test_mirostat_v1_refuses_an_m_that_is_not_an_integer_of_at_least_two(m: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^MirostatV1: m must be an integer of at least 2, got"):
        dk.MirostatV1(3.0, 0.1, m)


@pytest.mark.parametrize(
    "processor",
    [
        dk.MirostatV1(3.0),
        dk.MirostatV1(0.5, 1, 3),
        lambda prompts: dk.MirostatV1([0.5 + i for i in prompts], 0.5, [2 + i for i in prompts]),
    ],
)
def test_mirostat_v1_keeps_the_contract_of_processors(processor: Any) -> None:  # noqa: ANN401
    check_processor(processor, max_examples=15)
