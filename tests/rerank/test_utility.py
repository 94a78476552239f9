"""The contract of utilities, and any function as one."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from jaxtyping import Float64
from torch import Tensor

import decodekit as dk
from tests.rerank.texts import decoded


class Overlap(dk.AggregableUtility):
    """How many different letters a reference shares; the mean is over sets."""

    def pairwise(self, hypotheses: Sequence[Any], references: Sequence[Any]) -> Float64[Tensor, "hyps refs"]:
        rows = [[float(len({*one} & {*other})) for other in references] for one in hypotheses]
        return torch.tensor(rows, dtype=torch.float64)

    def aggregated(
        self, hypotheses: Sequence[Any], references: Sequence[Any], weights: Float64[Tensor, " refs"]
    ) -> Float64[Tensor, " hyps"]:
        return self.pairwise(hypotheses, references) @ weights


class Wrong(dk.Utility):
    """Returns the value it is made with."""

    def __init__(self, given: Any) -> None:  # noqa: ANN401
        self.given = given

    def pairwise(
        self,
        hypotheses: Sequence[Any],  # noqa: ARG002 - the contract's signature
        references: Sequence[Any],  # noqa: ARG002
    ) -> Float64[Tensor, "hyps refs"]:
        given: Tensor = self.given
        return given


def test_a_utility_of_ones_own_is_a_class_with_one_method_or_two() -> None:
    out = decoded([["abc", "ab", "xyz"]])
    for aggregate in (False, True):
        best = dk.mbr(out, Overlap(), aggregate=aggregate)
        assert best.texts == [["abc", "ab", "xyz"]]
        assert best.score[0].tolist() == pytest.approx([5 / 3, 4 / 3, 1.0])


def test_only_an_aggregable_utility_can_be_aggregated() -> None:
    with pytest.raises(TypeError, match="aggregate needs a utility that takes the mean"):
        dk.mbr(decoded([["a"]]), dk.UtilityFunction(lambda _, __: 0.0), aggregate=True)


@pytest.mark.parametrize("given", [None, torch.zeros(2), torch.full((2, 2), torch.nan), [[0.0, 0.0]] * 2])
def test_utilities_must_be_a_table_of_finite_numbers(given: Any) -> None:  # noqa: ANN401
    with pytest.raises(dk.DecodekitError, match=r"Wrong: utilities must be finite numbers of shape \(2, 2\)"):
        dk.mbr(decoded([["a", "b"]]), Wrong(given))


@pytest.mark.parametrize(("ids", "kind"), [(None, str), (False, str), (True, list)])
def test_the_function_takes_texts_or_ids(ids: Any, kind: type) -> None:  # noqa: ANN401
    given: list[object] = []

    def remember(one: object, other: object) -> float:
        given.extend([one, other])
        return 0.0

    dk.mbr(decoded([["a", "b"]]), dk.UtilityFunction(remember, ids=ids))
    assert {type(one) for one in given} == {kind}


def test_without_texts_a_bare_function_takes_ids() -> None:
    out = dk.decode(
        dk.testing.MarkovModel([[0.5, 0.5]] * 2), [[0]], dk.BeamSearch(2, num_return=2), max_new_tokens=1
    )
    best = dk.mbr(out, lambda one, other: float(one[0] > other[0]))
    assert best.hypotheses() == [[[1], [0]]]


def test_without_texts_in_one_of_two_results_both_are_read_as_ids() -> None:
    with_texts = decoded([["a", "b"]])
    out = dk.decode(dk.testing.MarkovModel([[0.2, 0.8]] * 2), [[0]], dk.Greedy(), max_new_tokens=1)
    best = dk.mbr(with_texts, lambda one, other: one == other, references=out)
    assert best.texts == [["b", "a"]]  # with the ids [1] and [0]


def test_texts_are_refused_if_there_are_none() -> None:
    out = dk.decode(dk.testing.MarkovModel([[0.2, 0.8]] * 2), [[0]], dk.Greedy(), max_new_tokens=1)
    for utility in (dk.UtilityFunction(lambda _, __: 0.0, ids=False), dk.ChrF()):
        with pytest.raises(dk.DecodekitError, match="mbr: texts need a tokenizer"):
            dk.mbr(out, utility)


@pytest.mark.parametrize("value", [True, 1, 1.0, torch.tensor(1.0)])
def test_numbers_of_any_kind_will_do(value: Any) -> None:  # noqa: ANN401
    found = dk.UtilityFunction(lambda _, __: value).pairwise(["a"], ["b"])
    assert (found.dtype, found.tolist()) == (torch.float64, [[1.0]])


@pytest.mark.parametrize("value", [None, "much", math.nan, math.inf, [1.0, 2.0]])
def test_the_function_must_return_a_finite_number(value: Any) -> None:  # noqa: ANN401
    with pytest.raises(dk.DecodekitError, match="UtilityFunction: the function must return a finite number"):
        dk.mbr(decoded([["a", "b"]]), lambda _, __: value)


@pytest.mark.parametrize("function", [None, 5, "chrf"])
def test_the_function_must_be_callable(function: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match="UtilityFunction: function must be callable"):
        dk.mbr(decoded([["a"]]), function)
