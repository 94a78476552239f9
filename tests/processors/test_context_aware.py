import math
from typing import Any

import pytest
import torch

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel, check_processor
from tests.processors.second import SPARSE, after, always


def test_what_the_context_adds_counts_once_more() -> None:
    # 3 : 1 with the context, 1 : 1 without: 9 : 1.
    out = after(dk.ContextAware(always(0.5, 0.5), 1, [[0]]), [0.75, 0.25])
    assert out.exp()[0].tolist() == pytest.approx([0.9, 0.1])
    half = after(dk.ContextAware(always(0.8, 0.2), 0.5, [[0]]), [0.8, 0.2])
    assert half.exp()[0].tolist() == pytest.approx([0.8, 0.2])


def test_an_alpha_of_zero_changes_nothing() -> None:
    out = after(dk.ContextAware(always(0.0, 1.0), 0, [[0]]), [0.75, 0.25])
    assert out.exp()[0].tolist() == pytest.approx([0.75, 0.25])


def test_the_second_model_reads_the_prompts_without_context() -> None:
    # After 0 the model prefers 1 without context, and 2 with it.
    model = MarkovModel([[0.1, 0.8, 0.1], [0.1, 0.45, 0.45], [0.1, 0.5, 0.4]])
    plain = dk.decode(model, [[0, 2]], dk.Greedy(), max_new_tokens=1)
    aware = dk.decode(model, [[0, 2]], dk.Greedy(), dk.ContextAware(model, 1, [[0]]), max_new_tokens=1)
    assert plain.hypotheses() == [[[1]]]
    assert aware.hypotheses() == [[[2]]]


def test_it_is_guidance_of_one_more_than_alpha_normalized() -> None:
    second = HashModel(3, 4)
    aware = after(dk.ContextAware(second, 0.7, [[1, 2]]), [0.5, 0.3, 0.2])
    guided = after(dk.ClassifierFreeGuidance(second, 1.7, [[1, 2]]), [0.5, 0.3, 0.2])
    torch.testing.assert_close(guided.log_softmax(-1), aware)


def test_banned_tokens_stay_banned_and_what_only_the_context_allows_is_preferred() -> None:
    out = after(dk.ContextAware(always(0.0, 0.0, 1.0), 1, [[0]]), [0.0, 0.5, 0.5])
    assert out[0, 0] == -math.inf
    assert out[0, 1:].isfinite().all()
    assert out.argmax() == 1


@pytest.mark.parametrize("alpha", [-0.1, math.inf, math.nan, "1", None, True, [1.0, -1.0]])
def test_an_alpha_must_be_a_finite_number_of_at_least_zero(alpha: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^ContextAware: alpha must be a finite number of at least 0, got"):
        dk.ContextAware(always(0.5, 0.5), alpha, [[0]])


@pytest.mark.parametrize("prompts", [None, [], [[]], 3, [[7]], "text"])
def test_prompts_must_be_prompts(prompts: Any) -> None:  # noqa: ANN401
    with pytest.raises(dk.PromptError, match=r"^Prompt: "):
        dk.ContextAware(always(0.5, 0.5), 1, prompts)


@pytest.mark.parametrize("second", [HashModel(9, 5), SPARSE])
@pytest.mark.parametrize("alpha", [0, 0.5])
def test_context_aware_keeps_the_contract_of_processors(second: dk.Model, alpha: float) -> None:
    check_processor(dk.ContextAware(second, alpha, [[3, 4]]), max_examples=10)


def test_context_aware_per_prompt_keeps_the_contract_of_processors() -> None:
    second = HashModel(9, 5)
    check_processor(
        lambda numbers: dk.ContextAware(second, [0.5 * n for n in numbers], [[n] * (1 + n) for n in numbers]),
        max_examples=20,
    )
