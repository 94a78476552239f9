import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.modeling_outputs import CausalLMOutput

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel, check_processor
from tests.processors.parity import LAWS, Call, calls
from tests.processors.second import SPARSE, after, always


def test_guidance_of_two_squares_the_odds_against_the_second_model() -> None:
    # One half, twice as likely as without the prompt, and one that is two thirds as likely; not normalized.
    out = after(dk.ClassifierFreeGuidance(always(0.25, 0.75), 2.0), [0.5, 0.5])
    assert out.exp()[0].tolist() == pytest.approx([1.0, 1 / 3])


def test_guidance_of_zero_is_the_second_model_and_of_one_half_between_the_two() -> None:
    second = always(0.25, 0.75)
    assert after(dk.ClassifierFreeGuidance(second, 0), [0.5, 0.5]).exp()[0].tolist() == pytest.approx(
        [0.25, 0.75]
    )
    half = after(dk.ClassifierFreeGuidance(second, 0.5), [0.5, 0.5]).exp()[0].tolist()
    assert half == pytest.approx([0.125**0.5, 0.375**0.5])


def test_guidance_of_one_normalizes_and_leaves_the_second_model_alone() -> None:
    class Untouched:
        def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> Any:  # noqa: ANN401
            raise AssertionError((prompt, rows_per_prompt, capacity))

    out = after(dk.ClassifierFreeGuidance(Untouched(), 1), [1.0, 3.0])
    assert out.exp()[0].tolist() == pytest.approx([0.25, 0.75])


def test_the_second_model_begins_with_the_last_token_and_reads_the_new_ones() -> None:
    # The second model prefers 1 after 0 and 0 after 1, the first has no preference.
    second = MarkovModel([[0.2, 0.8], [0.8, 0.2]])
    guided = dk.ClassifierFreeGuidance(second, 2.0)
    out = dk.decode(always(0.5, 0.5), [[1, 0], [0, 0, 1]], dk.Greedy(), guided, max_new_tokens=3)
    assert out.hypotheses() == [[[0, 0, 0]], [[1, 1, 1]]]


def test_of_a_longer_prompt_the_second_model_reads_the_last_token_and_no_other() -> None:
    model, second = HashModel(9), HashModel(9, 5)
    prompts, scale = [[3, 1, 4], [2, 7]], 2.0
    texts = [
        dk.decode(model, prompts, dk.BeamSearch(2), guided, max_new_tokens=3).hypotheses()
        for guided in (
            dk.ClassifierFreeGuidance(second, scale),
            dk.ClassifierFreeGuidance(second, scale, prompts=[[4], [7]]),
            dk.ClassifierFreeGuidance(second, scale, prompts=prompts),
        )
    ]
    assert texts[0] == texts[1] != texts[2]


def test_the_second_model_begins_with_the_prompts_it_is_given() -> None:
    second = MarkovModel([[0.2, 0.8], [0.8, 0.2]])
    guided = dk.ClassifierFreeGuidance(second, 2.0, prompts=[[1], [0]])
    out = dk.decode(always(0.5, 0.5), [[0], [1]], dk.Greedy(), guided, max_new_tokens=1)
    assert out.hypotheses() == [[[1]], [[0]]]


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_banned_tokens_stay_banned_whatever_the_second_model_prefers(scale: float) -> None:
    out = after(dk.ClassifierFreeGuidance(always(0.0, 0.5, 0.5), scale), [0.0, 0.0, 1.0])
    assert out[0, :2].tolist() == [-math.inf, -math.inf]
    assert out[0, 2].isfinite()


def test_a_token_impossible_for_the_second_model_is_banned_below_one_and_preferred_above() -> None:
    second = always(0.0, 1.0)
    assert after(dk.ClassifierFreeGuidance(second, 0.5), [0.5, 0.5])[0, 0] == -math.inf
    out = after(dk.ClassifierFreeGuidance(second, 2.0), [0.5, 0.5])
    assert out.isfinite().all()
    assert out.argmax() == 0


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, "2", None, True, [1.0, math.nan], []])
def test_a_scale_must_be_a_finite_number(scale: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^ClassifierFreeGuidance: scale must be "):
        dk.ClassifierFreeGuidance(always(0.5, 0.5), scale)


def test_there_must_be_as_many_scales_as_prompts() -> None:
    with pytest.raises(
        dk.DecodekitError, match=r"^ClassifierFreeGuidance: scale must be one number, or one for"
    ):
        after(dk.ClassifierFreeGuidance(always(0.5, 0.5), [1.0, 2.0]), [0.5, 0.5])


@pytest.mark.parametrize("second", [HashModel(9, 5), SPARSE])
@pytest.mark.parametrize("scale", [-1, 0.5, 1, 3.0])
def test_guidance_keeps_the_contract_of_processors(second: dk.Model, scale: float) -> None:
    check_processor(dk.ClassifierFreeGuidance(second, scale), max_examples=10)


def test_guidance_per_prompt_keeps_the_contract_of_processors() -> None:
    second = HashModel(9, 5)
    check_processor(
        lambda numbers: dk.ClassifierFreeGuidance(
            second, [0.5 * number for number in numbers], [[number] * (1 + number) for number in numbers]
        ),
        max_examples=20,
    )


@LAWS
@given(calls(), st.floats(-3, 5), st.integers(0, 2**31))
def test_guidance_is_hugging_faces_bit_for_bit(call: Call, scale: float, seed: int) -> None:
    tokens, scores = call
    scores = scores.nan_to_num(posinf=9.0)  # no infinite scores; minus infinity is finite here too
    other = torch.randn(scores.shape, generator=torch.Generator().manual_seed(seed))

    class Fixed:
        def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[Any, Tensor]:  # noqa: ARG002
            return None, other

    def plain(*_: object, **__: object) -> CausalLMOutput:
        return CausalLMOutput(logits=other[:, None])

    history = dk.Prompt(tokens, torch.ones_like(tokens, dtype=torch.bool)).history(tokens.shape[1] + 1, 1)
    ours = dk.ClassifierFreeGuidance(Fixed(), scale)
    out, _ = ours.apply(history, scores, ours.init(history))
    expected = UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, plain)(tokens, scores)
    assert expected.tolist() == out.tolist()
