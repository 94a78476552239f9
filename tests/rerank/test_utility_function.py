"""Any function as a utility: what it is given, and what it may return."""

import math
from typing import Any

import pytest
import torch

import decodekit as dk
from tests.rerank.texts import decoded


@pytest.mark.parametrize(("ids", "kind"), [(None, str), (False, str), (True, list)])
def test_it_is_given_texts_or_ids(ids: Any, kind: type) -> None:  # noqa: ANN401
    given: list[object] = []

    def remember(one: object, other: object) -> float:
        given.extend([one, other])
        return 0.0

    dk.mbr(decoded([["a", "b"]]), dk.UtilityFunction(remember, ids=ids))
    assert {type(one) for one in given} == {kind}


def test_without_texts_a_bare_function_is_given_ids() -> None:
    out = dk.decode(
        dk.testing.MarkovModel([[0.5, 0.5]] * 2), [[0]], dk.BeamSearch(2, num_return=2), max_new_tokens=1
    )
    best = dk.mbr(out, lambda one, other: float(one[0] > other[0]))
    assert best.hypotheses() == [[[1], [0]]]


def test_without_texts_in_one_of_two_results_both_are_read_as_ids() -> None:
    with_texts = decoded([["a", "b"]])
    out = dk.decode(dk.testing.MarkovModel([[0.2, 0.8]] * 2), [[0]], dk.Greedy(), max_new_tokens=1)
    best = dk.mbr(with_texts, lambda one, other: one == other, references=out)
    assert best.texts == [["b", "a"]]  # whose ids are [1] and [0]


def test_texts_that_are_wanted_must_be_there() -> None:
    out = dk.decode(dk.testing.MarkovModel([[0.2, 0.8]] * 2), [[0]], dk.Greedy(), max_new_tokens=1)
    for utility in (dk.UtilityFunction(lambda _, __: 0.0, ids=False), dk.ChrF()):
        with pytest.raises(dk.DecodekitError, match="mbr: texts need a tokenizer"):
            dk.mbr(out, utility)


@pytest.mark.parametrize("value", [True, 1, 1.0, torch.tensor(1.0)])
def test_numbers_of_any_kind_will_do(value: Any) -> None:  # noqa: ANN401
    found = dk.UtilityFunction(lambda _, __: value).pairwise(["a"], ["b"])
    assert (found.dtype, found.tolist()) == (torch.float64, [[1.0]])


@pytest.mark.parametrize("value", [None, "much", math.nan, math.inf, [1.0, 2.0]])
def test_what_is_no_finite_number_is_refused(value: Any) -> None:  # noqa: ANN401
    with pytest.raises(dk.DecodekitError, match="UtilityFunction: the function must return a finite number"):
        dk.mbr(decoded([["a", "b"]]), lambda _, __: value)


@pytest.mark.parametrize("function", [None, 5, "chrf"])
def test_what_cannot_be_called_is_refused(function: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match="UtilityFunction: function must be callable"):
        dk.mbr(decoded([["a"]]), function)
