import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.alone import FEW, Values, assert_each_has_its_own, batches
from tests.processors.parity import LAWS

VALUES = st.sampled_from([-2, 0, 0.5, 1]) | st.floats(-2.0, 2.0, width=32)
BANNED = -torch.inf


def after(
    processor: dk.FrequencyPenalty, prompts: list[list[int]], emitted: list[list[int]], scores: torch.Tensor
) -> list[list[float]]:
    """The scores after the tokens emitted in turn, for every prompt."""
    history = dk.Prompt.from_ids(prompts).history(max(map(len, prompts)) + len(emitted) + 1, 1)
    memory = processor.init(history)
    for tokens in emitted:
        _, memory = processor.apply(history, scores, memory)
        history = history.append(torch.tensor(tokens))
    return processor.apply(history, scores, memory)[0].tolist()


def test_frequency_penalty_is_subtracted_each_time_the_token_was_generated() -> None:
    scores = torch.tensor([[1.0, 1.0, -1.0, 1.0]])
    assert after(dk.FrequencyPenalty(0.5), [[0]], [[1], [2], [1]], scores) == [[1.0, 0.0, -1.5, 1.0]]


def test_frequency_penalty_counts_the_prompt_only_on_request() -> None:
    out = after(dk.FrequencyPenalty(0.5, include_prompt=True), [[0, 3, 3]], [[1]], torch.zeros(1, 4))
    assert out == [[-0.5, -0.5, 0.0, -1.0]]
    out = after(dk.FrequencyPenalty(0.5), [[0, 3, 3]], [[1]], torch.zeros(1, 4))
    assert out == [[0.0, -0.5, 0.0, 0.0]]


def test_frequency_penalty_of_zero_changes_nothing() -> None:
    scores = torch.tensor([[1.0, -2.0, BANNED]])
    assert scores.tolist() == after(dk.FrequencyPenalty(0), [[0]], [[1], [2]], scores)


def test_frequency_penalty_below_zero_encourages_repetition() -> None:
    assert after(dk.FrequencyPenalty(-0.5), [[0]], [[1]], torch.zeros(1, 3)) == [[0.0, 0.5, 0.0]]


def test_frequency_penalty_does_not_count_padding() -> None:
    out = after(
        dk.FrequencyPenalty(1.0, include_prompt=True), [[2, 2, 1], [1]], [[2], [2]], torch.zeros(2, 3)
    )
    assert [row[0] for row in out] == [0.0, 0.0]  # the pad id


def test_frequency_penalty_ignores_ids_outside_the_vocabulary() -> None:
    assert after(dk.FrequencyPenalty(1.0), [[0]], [[5], [1]], torch.zeros(1, 2)) == [[0.0, -1.0]]


def test_frequency_penalty_leaves_infinities_as_they_are_however_large_it_is() -> None:
    scores = torch.tensor([[torch.inf, BANNED, 0.0]])
    for penalty in (3e38, -3e38):
        out = after(dk.FrequencyPenalty(penalty), [[2]], [[0], [1], [0], [1]], scores)
        assert scores.tolist() == out


def test_frequency_penalty_follows_its_beam() -> None:
    processor = dk.FrequencyPenalty(1.0)
    history = dk.Prompt.from_ids([[0]]).history(4, 2)
    memory = processor.init(history)
    history = history.append(torch.tensor([1, 2])).take(torch.tensor([1, 1])).append(torch.tensor([0, 1]))
    out, _ = processor.apply(history, torch.zeros(2, 3), memory)
    assert out.tolist() == [[-1.0, 0.0, -1.0], [0.0, -1.0, -1.0]]


@pytest.mark.parametrize("penalty", [math.inf, -math.inf, math.nan, 1e39, True, "a", None, [1.0, math.nan]])
def test_frequency_penalty_refuses_what_is_not_a_finite_number(penalty: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^FrequencyPenalty: penalty must be a finite float32 number, got"):
        dk.FrequencyPenalty(penalty)


@pytest.mark.parametrize("include", [0, 1, None, "yes"])
def test_frequency_penalty_refuses_an_include_prompt_that_is_not_a_boolean(include: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^FrequencyPenalty: include_prompt must be True or False, got"):
        dk.FrequencyPenalty(1.0, include_prompt=include)


def test_frequency_penalty_refuses_numbers_that_are_not_one_per_prompt() -> None:
    message = r"^FrequencyPenalty: penalty must be one number, or one for each prompt, got 2 for 1 prompts"
    with pytest.raises(dk.DecodekitError, match=message):
        dk.FrequencyPenalty([1.0, 2.0]).init(dk.Prompt.from_ids([[0]]).history(2, 1))


@pytest.mark.parametrize(
    "processor",
    [
        dk.FrequencyPenalty(0.7),
        dk.FrequencyPenalty(-1, include_prompt=True),
        lambda numbers: dk.FrequencyPenalty([0.5 * number - 0.5 for number in numbers]),
    ],
)
def test_frequency_penalty_keeps_the_contract_of_processors(processor: Any) -> None:  # noqa: ANN401
    check_processor(processor, max_examples=20)


def reference(scores: list[float], text: list[int], penalty: float) -> list[float]:
    """The formula of the OpenAI API's documentation, token by token."""
    return [score - penalty * text.count(token) for token, score in enumerate(scores)]


@LAWS
@given(batches(VALUES), st.booleans(), st.integers(0, 2**31))
def test_frequency_penalty_is_what_the_openai_api_says(
    case: tuple[list[list[int]], Values],
    prompt: bool,  # noqa: FBT001
    seed: int,
) -> None:
    batch, values = case
    generator = torch.Generator().manual_seed(seed)
    emitted = torch.randint(0, 7, (3, len(batch)), generator=generator)
    # Eighths and 24 bits of penalty: Python's float64 is rounded once, as float32 rounds.
    scores = torch.randn(len(batch), 7, generator=generator).mul(8).round() / 8
    out = after(dk.FrequencyPenalty(values, include_prompt=prompt), batch, emitted.tolist(), scores)
    for row, text in enumerate(batch):
        counted = (text if prompt else []) + emitted[:, row].tolist()
        expected = reference(scores[row].tolist(), counted, values[row])
        torch.testing.assert_close(torch.tensor(expected), torch.tensor(out[row]), rtol=1e-6, atol=1e-6)


@FEW
@given(batches(VALUES), st.booleans(), st.integers(0, 2**31))
def test_frequency_penalty_of_every_prompt_is_what_it_is_alone(
    case: tuple[list[list[int]], Values],
    prompt: bool,  # noqa: FBT001
    seed: int,
) -> None:
    batch, values = case
    assert_each_has_its_own(
        lambda value: dk.FrequencyPenalty(value, include_prompt=prompt), batch, values, seed
    )
