"""What a utility of one's own must do, and what is refused."""

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
    """Returns what it is made with."""

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
def test_what_is_no_table_of_finite_numbers_is_refused(given: Any) -> None:  # noqa: ANN401
    with pytest.raises(dk.DecodekitError, match=r"Wrong: utilities must be finite numbers of shape \(2, 2\)"):
        dk.mbr(decoded([["a", "b"]]), Wrong(given))
