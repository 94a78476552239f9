import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.core.stopping_criterion import flatten
from decodekit.testing import HashModel, check_captures, check_decoder
from tests.stopping.scripted import Pieces, Scripted

A, B, C = (dk.EndIds(token, reason=name) for token, name in enumerate("abc"))


def finished(stop: object, tokens: list[int]) -> tuple[int, str]:
    """After how many tokens a text ends, and why."""
    out = dk.decode(Scripted([tokens], 5), [[4]], dk.Greedy(), stop=stop, max_new_tokens=len(tokens))  # type: ignore[arg-type]
    return int(out.lengths), out.finish_reason[0][0]


def test_the_first_that_holds_finishes_the_text() -> None:
    assert finished(A | B, [3, 3, 1, 0]) == (3, "b")
    assert finished(A | B, [3, 0, 1, 0]) == (2, "a")
    assert finished(A | B, [3, 3]) == (2, "length")


def test_of_several_that_hold_at_once_the_first_in_order_gives_the_reason() -> None:
    one, two = dk.EndIds(0, reason="one"), dk.EndIds(0, reason="two")
    assert finished(one | two, [0]) == (1, "one")
    assert finished(two | one, [0]) == (1, "two")
    assert finished([B, two, one], [0]) == (1, "two")


def test_it_is_the_sequence_of_its_criteria_however_it_is_nested() -> None:
    nested = [dk.AnyOf(A, B, C), A | B | C, A | (B | C), [A, B | C], [A, B, C]]
    for tokens in itertools.product(range(4), repeat=2):
        assert len({finished(stop, list(tokens)) for stop in nested}) == 1
    assert flatten(A | (B | C)) == (A, B, C)


def test_inside_all_of_its_reason_is_both() -> None:
    assert finished((A | B) & dk.MaxNewTokens(2), [0, 3, 1]) == (3, "a or b and length")
    assert (A | B).reason == "a or b"


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 5), min_size=1, max_size=3))
def test_any_of_several_ids_is_one_of_the_ids(seed: int, ids: list[int]) -> None:
    search, model = dk.BeamSearch(3, num_return=3), HashModel(6, seed)
    expected = dk.decode(model, [[1], [2, 3]], search, stop=dk.EndIds(ids), max_new_tokens=5)
    for stop in ([dk.EndIds(i) for i in ids], dk.AnyOf(*map(dk.EndIds, ids)) & dk.MaxNewTokens(1)):
        out = dk.decode(model, [[1], [2, 3]], search, stop=stop, max_new_tokens=5)
        assert expected.hypotheses() == out.hypotheses()


def test_the_text_is_cut_by_the_strings_among_them() -> None:
    model = Scripted([[0, 1]], 2, Pieces(["ab.", "c"]))
    for stop in (["x", "."], dk.StopStrings("x") | dk.StopStrings("."), [dk.MaxNewTokens(2), "."]):
        out = dk.decode(model, [[0]], dk.Greedy(), stop=stop, max_new_tokens=2)
        assert (out.texts, out.finish_reason) == ([["ab"]], [["string"]])


def test_it_holds_back_what_one_of_them_may_cut() -> None:
    stop = dk.StopStrings("abc") | dk.StopStrings("xyz")
    assert [stop.held_back(text) for text in ("..ab", "..x", "..", "..abc")] == [2, 1, 0, 0]
    assert stop.trim("1abc2xyz", "1", fired=True) == "1"


@pytest.mark.slow
def test_it_keeps_the_laws() -> None:
    stop = dk.EndIds(3) | dk.RepetitionLoop(2, 2)
    check_decoder(dk.BeamSearch(3), stop=stop, max_examples=10)
    check_decoder(dk.Greedy(), stop=(stop | dk.Confidence(0.1)) & dk.MaxNewTokens(2), max_examples=10)
    check_captures(dk.BeamSearch(3), stop=stop & dk.MaxNewTokens(2))


def test_it_is_capturable_if_all_are() -> None:
    assert (A | B).capturable
    assert not (A | dk.MaxTime(1)).capturable
    assert not (A | (B | dk.StopStrings("x"))).capturable


def test_equal_criteria_make_equal_combinations_and_the_repr_is_python() -> None:
    assert dk.AnyOf(A, B) == A | B
    assert A | B != B | A
    assert hash(A | B) == hash(dk.AnyOf(A, B))
    assert repr(A | B) == f"AnyOf({A!r}, {B!r})"


def test_there_must_be_criteria_and_nothing_else() -> None:
    with pytest.raises(TypeError, match="AnyOf: there must be at least one criterion, got none"):
        dk.AnyOf()
    with pytest.raises(TypeError, match="AnyOf: every criterion must be a StoppingCriterion, got '!'"):
        dk.AnyOf(A, "!")  # type: ignore[arg-type]
