import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import ExponentialDecayLengthPenalty

import decodekit as dk
from decodekit.testing import MarkovModel, check_processor
from tests.processors.parity import LAWS, Call, assert_same_at_every_step, calls, history_of, step_scores

MOST = torch.finfo(torch.float32).max


def test_exponential_length_decay_pushes_end_ids_up_once_the_text_is_past_its_start() -> None:
    scores = torch.tensor([[1.0, -1.0, 5.0]])
    out = step_scores(
        dk.ExponentialLengthDecay(1, 2.0, end_ids=[0, 1]), history_of([[2, 2]]), scores, [[2], [2], [2]]
    )
    # 2^n - 1 is 1, then 3.
    assert out == [scores.tolist(), scores.tolist(), [[2.0, 0.0, 5.0]], [[4.0, 2.0, 5.0]]]


def test_exponential_length_decay_below_one_pushes_end_ids_down() -> None:
    scores = torch.tensor([[1.0, -1.0]])
    out = step_scores(dk.ExponentialLengthDecay(0, 0.5, end_ids=[0, 1]), history_of([[1]]), scores, [[1]])
    assert out == [scores.tolist(), [[0.5, -1.5]]]


def test_exponential_length_decay_of_factor_one_changes_nothing() -> None:
    scores = torch.tensor([[1.5, -2.5]])
    out = step_scores(dk.ExponentialLengthDecay(0, 1, end_ids=0), history_of([[1]]), scores, [[1], [1]])
    assert out == [scores.tolist()] * 3


def test_exponential_length_decay_does_not_count_padding() -> None:
    model = MarkovModel([[0.5, 0.5], [0.2, 0.8]], end_ids=(0,))
    decay = dk.ExponentialLengthDecay(1, 1.5, end_ids=0)
    out = dk.decode(model, [[1, 1, 1], [1]], dk.Greedy(), decay, max_new_tokens=9)
    assert out.hypotheses() == [[[1, 1, 1, 0]], [[1, 1, 1, 0]]]


def test_exponential_length_decay_allows_nothing_that_was_banned() -> None:
    scores = torch.tensor([[-torch.inf, 0.0]])
    out = step_scores(dk.ExponentialLengthDecay(0, 2.0, end_ids=0), history_of([[1]]), scores, [[1]])
    assert out == [scores.tolist()] * 2


@pytest.mark.parametrize("factor", [1e30, 1e300, 1.7e308])
def test_exponential_length_decay_stays_finite_where_hugging_faces_overflows(factor: float) -> None:
    scores = torch.tensor([[-1.0, 0.0, 10.0, 2.0]])
    decay = dk.ExponentialLengthDecay(0, factor, end_ids=[0, 1, 2])
    assert step_scores(decay, history_of([[1]]), scores, [[1], [1]])[-1] == [[MOST, 0.0, MOST, 2.0]]
    theirs = ExponentialDecayLengthPenalty((0, factor), [0, 1, 2], 1)
    if factor == 1e30:
        assert theirs(torch.ones(1, 3), scores)[0, 2] == torch.inf
        assert theirs(torch.ones(1, 3), scores)[0, 1].isnan()
    else:
        with pytest.raises(OverflowError):
            theirs(torch.ones(1, 3), scores)


def test_exponential_length_decay_may_differ_by_prompt() -> None:
    scores = torch.ones(3, 2)
    both = dk.ExponentialLengthDecay([0, 0, 1], [2.0, 3.0, 2.0], end_ids=0)
    out = step_scores(both, history_of([[1], [1], [1]]), scores, [[1] * 3, [1] * 3])
    assert [row[0] for row in out[1]] == [2.0, 3.0, 1.0]
    assert [row[0] for row in out[2]] == [4.0, 9.0, 2.0]


def test_exponential_length_decay_refuses_an_empty_list_of_numbers() -> None:
    with pytest.raises(ValueError, match=r"^ExponentialLengthDecay: factor must be one number, or one for"):
        dk.ExponentialLengthDecay(0, [1.1, 1.2], end_ids=0).init(history_of([[1]]))


@pytest.mark.parametrize("start", [-1, 1.0, True, "3", None, [1, -1]])
def test_exponential_length_decay_refuses_a_start_that_is_no_count(start: Any) -> None:  # noqa: ANN401
    message = r"^ExponentialLengthDecay: start must be an integer of at least 0, got"
    with pytest.raises(ValueError, match=message):
        dk.ExponentialLengthDecay(start, 1.1, end_ids=0)


@pytest.mark.parametrize("factor", [0, -1.0, math.inf, math.nan, True, "3", None, [1.1, 0.0]])
def test_exponential_length_decay_refuses_a_factor_that_is_not_finite_and_above_zero(factor: Any) -> None:  # noqa: ANN401
    message = r"^ExponentialLengthDecay: factor must be a finite number above 0, got"
    with pytest.raises(ValueError, match=message):
        dk.ExponentialLengthDecay(0, factor, end_ids=0)


@pytest.mark.parametrize("end_ids", [-1, [0, -1], [1.0], "a", [None], True])
def test_exponential_length_decay_refuses_end_ids_that_are_not_ids(end_ids: Any) -> None:  # noqa: ANN401
    message = r"^ExponentialLengthDecay: token ids must be integers of at least 0, got"
    with pytest.raises(ValueError, match=message):
        dk.ExponentialLengthDecay(0, 1.1, end_ids=end_ids)


def test_exponential_length_decay_refuses_an_end_id_outside_the_vocabulary_when_applied() -> None:
    message = r"^ExponentialLengthDecay: token ids must be below the vocabulary size 4, got 4"
    with pytest.raises(ValueError, match=message):
        step_scores(dk.ExponentialLengthDecay(0, 1.1, end_ids=4), history_of([[1]]), torch.zeros(1, 4), [])


@pytest.mark.parametrize(("start", "factor"), [(0, 1.3), (2, 0.5), (0, 1e300), (99, 2)])
def test_exponential_length_decay_keeps_the_contract_of_processors(start: int, factor: float) -> None:
    check_processor(dk.ExponentialLengthDecay(start, factor, end_ids=[0, 7]), max_examples=20)


def test_exponential_length_decay_per_prompt_keeps_the_contract_of_processors() -> None:
    check_processor(
        lambda prompts: dk.ExponentialLengthDecay(prompts, [1.1 + n for n in prompts], end_ids=[2, 3]),
        max_examples=20,
    )


@LAWS
@given(
    calls(),
    st.integers(0, 6),
    st.floats(0.1, 10.0) | st.floats(0.9999, 1.0001) | st.integers(1, 3),
    st.lists(st.integers(0, 8)),
    st.integers(0, 2**31),
)
def test_exponential_length_decay_is_hugging_faces_at_every_step(
    call: Call, start: int, factor: float, ids: list[int], seed: int
) -> None:
    tokens, scores = call
    end_ids = [end_id % scores.shape[1] for end_id in ids]
    theirs = ExponentialDecayLengthPenalty(
        (start, factor), torch.tensor(end_ids, dtype=torch.long), tokens.shape[1]
    )
    assert_same_at_every_step(theirs, dk.ExponentialLengthDecay(start, factor, end_ids=end_ids), call, seed)
