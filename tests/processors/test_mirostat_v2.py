import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import decodekit as dk
from decodekit.core.history import RowOwners
from decodekit.testing import HashModel, check_processor
from decodekit.testing.capture_laws import shapes
from tests.processors.parity import LAWS
from tests.processors.reference import BANNED, history_of, probabilities

HALVES = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()  # 1, 2, 3 and 3 bits


def reference(
    steps: list[list[float]], said: list[int], tau: float, eta: float
) -> list[tuple[float, list[float]]]:
    """For one row: at every step the bound, and how far every token is above it."""
    mu, out = 2 * tau, []
    for scores, token in zip(steps, said, strict=True):
        surprise = [-math.log2(prob) if prob > 0 else math.inf for prob in probabilities(scores)]
        best = max(scores)
        out.append((mu, [-1.0 if scores[v] == best else surprise[v] - mu for v in range(len(scores))]))
        mu -= eta * (surprise[token] - tau)
    return out


def run(
    processor: Any,  # noqa: ANN401 - either version
    steps: torch.Tensor,
    picks: list[int],
) -> tuple[list[list[int]], list[list[float]], torch.Tensor]:
    """Says at every step one of the tokens that are kept.

    Returns:
        For every row the tokens said and the bounds, and all processed scores [steps rows vocab].
    """
    rows = steps.shape[1]
    history = history_of([[0] * (1 + row) for row in range(rows)], len(steps))
    memory, said, bounds, out = processor.init(history), [], [], []
    for scores, pick in zip(steps, picks, strict=True):
        processed, memory = processor.apply(history, scores, memory)
        allowed = [[v for v, score in enumerate(row) if score > BANNED] for row in processed.tolist()]
        said.append([several[pick % len(several)] for several in allowed])
        bounds.append(memory.mu[:, 0].tolist())
        out.append(processed)
        history = history.append(torch.tensor(said[-1]))
    return (
        [list(column) for column in zip(*said, strict=True)],
        [list(column) for column in zip(*bounds, strict=True)],
        torch.stack(out),
    )


@st.composite
def trajectories(draw: st.DrawFn, steps: int = 6) -> tuple[torch.Tensor, list[int]]:
    """Scores [steps rows vocab], some banned, and which of the kept tokens to say at every step."""
    rows, vocab = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.randn(steps, rows, vocab, generator=generator) * draw(st.sampled_from([0.3, 1.0, 3.0]))
    banned = torch.rand(scores.shape, generator=generator) < draw(st.sampled_from([0.0, 0.4]))
    banned[..., 0] = False
    return scores.masked_fill(banned, BANNED), draw(
        st.lists(st.integers(0, 10), min_size=steps, max_size=steps)
    )


def test_mirostat_v2_keeps_what_surprises_no_more_than_mu_which_begins_at_twice_the_target() -> None:
    processor, history = dk.MirostatV2(1.0), history_of([[0]], 1)
    out, memory = processor.apply(history, HALVES, processor.init(history))
    assert (out > BANNED).tolist() == [[True, True, False, False]]
    assert memory.mu.tolist() == [[2.0]]


def test_mirostat_v2_lowers_mu_by_what_was_more_surprising_than_the_target() -> None:
    processor, history = dk.MirostatV2(1.5, 0.5), history_of([[0]], 3)
    memory = processor.init(history)
    bounds = []
    for token in (3, 0, 0):  # 3 bits, 1 bit
        _, memory = processor.apply(history, HALVES, memory)
        bounds.append(memory.mu.item())
        history = history.append(torch.tensor([token]))
    assert bounds == [3.0, 2.25, 2.5]


def test_mirostat_v2_keeps_the_likeliest_token_however_low_mu_is() -> None:
    processor, history = dk.MirostatV2(0.1), history_of([[0]], 1)
    out, _ = processor.apply(history, HALVES, processor.init(history))
    assert (out > BANNED).tolist() == [[True, False, False, False]]


def test_mirostat_v2_learns_nothing_from_the_prompt_or_from_what_was_banned() -> None:
    processor, history = dk.MirostatV2(1.0, 1.0), history_of([[1, 1]], 2)
    scores = HALVES.index_fill(1, torch.tensor([3]), BANNED)
    _, memory = processor.apply(history, scores, processor.init(history))
    assert memory.mu.item() == 2.0
    _, memory = processor.apply(history.append(torch.tensor([3])), scores, memory)
    assert memory.mu.item() == 2.0


def test_mirostat_v2_leaves_a_row_without_tokens_as_it_is() -> None:
    processor, history = dk.MirostatV2(1.0), history_of([[1, 1]], 2)
    scores = torch.full((1, 3), BANNED)
    out, memory = processor.apply(history, scores, processor.init(history))
    assert scores.tolist() == out.tolist()
    _, memory = processor.apply(history.append(torch.tensor([1])), scores, memory)
    assert memory.mu.item() == 2.0


@LAWS
@given(trajectories(), st.floats(0.2, 4), st.floats(0.05, 1.5))
def test_mirostat_v2_is_the_slow_reference_over_a_whole_trajectory(
    trajectory: tuple[torch.Tensor, list[int]], tau: float, eta: float
) -> None:
    steps, picks = trajectory
    said, bounds, out = run(dk.MirostatV2(tau, eta), steps, picks)
    for row, tokens in enumerate(said):
        expected = reference(steps[:, row].tolist(), tokens, tau, eta)
        for step, (mu, excess) in enumerate(expected):
            # Sums of logarithms in float32.
            assert bounds[row][step] == pytest.approx(mu, rel=1e-4, abs=1e-4)
            for token, far in enumerate(excess):
                before, after = steps[step, row, token].item(), out[step, row, token].item()
                if before == BANNED or abs(far) > 1e-3:
                    assert after == (BANNED if far > 0 else before)


@pytest.mark.parametrize("tau", [2.5, 3.5])
def test_mirostat_v2_brings_the_mean_surprise_to_the_target(tau: float) -> None:
    model, sample = HashModel(100, seed=1), dk.Sample(2, seeds=[5])
    out = dk.decode(model, [[1]], sample, dk.MirostatV2(tau, 0.5), max_new_tokens=150)
    bits = -out.log_prob / math.log(2) / 150
    # The errors add up to the change of mu over eta, a few bits in 150.
    assert bits[0].tolist() == pytest.approx([tau, tau], abs=0.1)


def test_mirostat_v2_takes_one_number_for_each_prompt() -> None:
    steps = HALVES.expand(5, 2, 4)
    together = run(dk.MirostatV2([1.0, 2.0], [0.5, 0.25]), steps, [3, 1, 0, 2, 1])
    for row, (tau, eta) in enumerate([(1.0, 0.5), (2.0, 0.25)]):
        said, bounds, _ = run(dk.MirostatV2(tau, eta), steps[:, :1], [3, 1, 0, 2, 1])
        assert said[0] == together[0][row]
        assert bounds[0] == together[1][row]


@pytest.mark.parametrize("processor", [dk.MirostatV1(3.0, 0.1, 10), dk.MirostatV2([3.0, 4.0], 0.1)])
def test_mirostat_reads_nothing_from_the_device_and_keeps_its_shapes_after_the_first_step(
    processor: Any,  # noqa: ANN401
) -> None:
    with torch.device("meta"):
        tokens = torch.zeros(4, 9, dtype=torch.long)
        valid, position = torch.zeros(4, 9, dtype=torch.bool), torch.zeros((), dtype=torch.long)
        history = dk.History(tokens, valid, position, RowOwners.of(4, 2, torch.device("meta")))
        _, first = processor.apply(history, torch.empty(4, 30), processor.init(history))
        _, second = processor.apply(history, torch.empty(4, 30), first)
    assert shapes(first) == shapes(second)


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, "1", None, True, [1.0, 0.0]])
@pytest.mark.parametrize("name", ["tau", "eta"])
def test_mirostat_v2_refuses_what_is_not_a_finite_number_above_zero(name: str, value: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=rf"^MirostatV2: {name} must be a finite number above 0, got"):
        dk.MirostatV2(**{"tau": 3.0, "eta": 0.1, name: value})


@pytest.mark.parametrize(
    "processor",
    [
        dk.MirostatV2(3.0),
        dk.MirostatV2(0.5, 1),
        lambda prompts: dk.MirostatV2([0.5 + i for i in prompts], [0.1 + i for i in prompts]),
    ],
)
def test_mirostat_v2_keeps_the_contract_of_processors(processor: Any) -> None:  # noqa: ANN401
    check_processor(processor, max_examples=15)
