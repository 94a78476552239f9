import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel, check_captures, check_decoder
from decodekit.testing.strategies import prompts

LOOP = MarkovModel([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])  # 0, 1, 2, 0, 1, 2, ...


@pytest.mark.parametrize("given_ids", [2, [2], (2,), torch.tensor([2]), iter([2]), [2, 900]])
def test_the_text_ends_with_the_id(given_ids: int) -> None:
    out = dk.decode(LOOP, [[0]], dk.Greedy(), stop=dk.EndIds(given_ids), max_new_tokens=6)
    assert (out.hypotheses(), out.finish_reason) == ([[[1, 2]]], [["end"]])


def test_the_prompt_may_hold_it() -> None:
    out = dk.decode(LOOP, [[2, 0]], dk.Greedy(), stop=dk.EndIds([0, 2]), max_new_tokens=6)
    assert out.hypotheses() == [[[1, 2]]]


def test_the_runs_own_end_ids_count_too_and_take_precedence() -> None:
    out = dk.decode(LOOP, [[0], [1]], dk.Greedy(), stop=dk.EndIds(2, "two"), end_ids=1, max_new_tokens=6)
    assert (out.hypotheses(), out.finish_reason) == ([[[1]], [[2]]], [["end"], ["two"]])
    both = dk.decode(LOOP, [[0]], dk.Greedy(), stop=dk.EndIds(1, "one"), end_ids=1, max_new_tokens=6)
    assert both.finish_reason == [["end"]]


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(batch=prompts(vocab=5), seed=st.integers(0, 2**31), ends=st.sets(st.integers(0, 4), min_size=1))
def test_under_greedy_search_it_is_the_end_ids(batch: list[list[int]], seed: int, ends: set[int]) -> None:
    model = HashModel(5, seed)
    expected = dk.decode(model, batch, dk.Greedy(), end_ids=list(ends), max_new_tokens=6)
    out = dk.decode(model, batch, dk.Greedy(), stop=dk.EndIds(ends), max_new_tokens=6)
    assert expected.hypotheses() == out.hypotheses()
    assert expected.finish_reason == out.finish_reason


def test_it_keeps_the_laws() -> None:
    check_decoder(dk.BeamSearch(3), stop=dk.EndIds([3, 5]), max_examples=10)
    check_captures(dk.BeamSearch(3), stop=dk.EndIds([3, 5]))


@pytest.mark.parametrize("ids", [-1, [1, -1], 1.5, "5", None, True, [None]])
def test_ids_must_be_integers_of_at_least_zero(ids: int) -> None:
    with pytest.raises(ValueError, match="EndIds: token ids must be integers of at least 0"):
        dk.EndIds(ids)


def test_there_must_be_an_id() -> None:
    with pytest.raises(ValueError, match="EndIds: there must be at least one id"):
        dk.EndIds([])


@pytest.mark.parametrize("reason", ["", None, 5])
def test_the_reason_must_be_text(reason: str) -> None:
    with pytest.raises(ValueError, match="EndIds: reason must be text"):
        dk.EndIds(1, reason)
