"""Constraints and their arguments."""

from typing import Any

import pytest

import decodekit as dk


def test_a_phrase_keeps_its_ids_and_equals_one_of_the_same_ids() -> None:
    assert dk.Phrase([5, 7]).ids == (5, 7)
    assert dk.Phrase([5, 7]) == dk.Phrase((5, 7))
    assert dk.Phrase(5).alternatives == ((5,),)


def test_one_of_keeps_its_phrases() -> None:
    assert dk.OneOf([[5, 7], [9]]).alternatives == ((5, 7), (9,))
    assert dk.OneOf([5, 9]).alternatives == ((5,), (9,))


@pytest.mark.parametrize("ids", [[], ()])
def test_a_phrase_must_hold_at_least_one_id(ids: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^Phrase: a phrase must hold at least one id, got none"):
        dk.Phrase(ids)
    with pytest.raises(ValueError, match=r"^OneOf: a phrase must hold at least one id, got none"):
        dk.OneOf([[1], ids])


@pytest.mark.parametrize("ids", [[-1], [1.0], "a", None, [True]])
def test_ids_must_be_integers_of_at_least_zero(ids: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^Phrase: token ids must be integers of at least 0, got"):
        dk.Phrase(ids)
    with pytest.raises(ValueError, match=r"^OneOf: token ids must be integers of at least 0, got"):
        dk.OneOf([[3], ids])


def test_one_of_must_hold_at_least_one_phrase() -> None:
    with pytest.raises(ValueError, match=r"^OneOf: phrases must hold at least one sequence of ids, got none"):
        dk.OneOf([])
    with pytest.raises(ValueError, match=r"^OneOf: phrases must be sequences of ids, got 5"):
        dk.OneOf(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "constraints", [[[5, 7]], [5], dk.Phrase(5), "ab", None, [dk.Phrase(5), [dk.Phrase(5)]]]
)
def test_constraints_must_be_lists_of_phrases(constraints: Any) -> None:  # noqa: ANN401
    message = r"^ConstrainedBeamSearch: constraints must be a list of Phrase and OneOf"
    with pytest.raises(TypeError, match=message):
        dk.ConstrainedBeamSearch(2, constraints)
