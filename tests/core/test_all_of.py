import pytest

import decodekit as dk
from decodekit.testing import HashModel, check_captures, check_decoder
from tests.stopping.scripted import Pieces, Scripted

A = dk.EndIds(0, reason="a")
LATE = dk.MaxNewTokens(3)


def finished(stop: dk.StoppingCriterion, tokens: list[int]) -> tuple[int, str]:
    """After how many tokens a text ends, and why."""
    out = dk.decode(Scripted([tokens], 5), [[4]], dk.Greedy(), stop=stop, max_new_tokens=len(tokens))
    return int(out.lengths), out.finish_reason[0][0]


def test_all_must_hold_after_the_same_token() -> None:
    assert finished(A & LATE, [0, 1, 1, 0, 1]) == (4, "a and length")
    assert finished(A & LATE, [1, 1, 0, 0, 1]) == (3, "a and length")
    # The first held after one token, the second from another on: never both.
    assert finished(A & LATE, [0, 0, 1, 1]) == (4, "length")


def test_every_memory_is_updated_while_another_criterion_does_not_hold() -> None:
    stop = dk.RepetitionLoop(2, 1) & A
    assert finished(stop, [1, 1, 2, 0, 3, 0, 0]) == (7, "loop and a")


def test_all_of_one_is_that_one() -> None:
    model, search = HashModel(5, seed=3), dk.BeamSearch(3, num_return=3)
    expected = dk.decode(model, [[1], [2, 3]], search, stop=A, max_new_tokens=5)
    for stop in (dk.AllOf(A), A & A, A & dk.MaxNewTokens(1)):
        out = dk.decode(model, [[1], [2, 3]], search, stop=stop, max_new_tokens=5)
        assert expected.hypotheses() == out.hypotheses()


def test_the_text_is_cut_only_if_all_held() -> None:
    model = Scripted([[0, 0, 1, 0, 1]], 2, Pieces(["a.", "b"]))
    out = dk.decode(model, [[0]], dk.Greedy(), stop=dk.StopStrings(".") & LATE, max_new_tokens=5)
    assert (out.texts, out.finish_reason) == ([["a.a.ba"]], [["string and length"]])
    # Here the limit of the run came first, with a string in the newest token.
    stop = dk.StopStrings(".") & dk.MaxNewTokens(9)
    whole = dk.decode(model, [[0]], dk.Greedy(), stop=stop, max_new_tokens=4)
    assert (whole.texts, whole.finish_reason) == ([["a.a.ba."]], [["length"]])


def test_it_holds_back_what_one_of_them_may_cut() -> None:
    stop = dk.StopStrings("abc") & dk.StopStrings("bx")
    assert [stop.held_back(text) for text in ("..ab", "..b", "..")] == [2, 1, 0]
    assert stop.trim("1abc", "1", fired=False) is None
    assert stop.trim("1abc", "1", fired=True) == "1"


@pytest.mark.slow
def test_it_keeps_the_laws() -> None:
    stop = dk.Confidence(0.5) & dk.MaxNewTokens(2)
    for decoder in (dk.Greedy(), dk.BeamSearch(3)):
        check_decoder(decoder, stop=stop, max_examples=10)
    check_captures(dk.BeamSearch(3), stop=stop)


def test_it_is_capturable_if_all_are_and_the_repr_is_python() -> None:
    assert (A & LATE).capturable
    assert not (A & dk.MaxTime(1)).capturable
    assert dk.AllOf(A, LATE) == A & LATE
    assert hash(A & LATE) == hash(dk.AllOf(A, LATE))
    assert repr(A & LATE) == f"AllOf({A!r}, {LATE!r})"


def test_there_must_be_criteria_and_nothing_else() -> None:
    with pytest.raises(TypeError, match="AllOf: there must be at least one criterion, got none"):
        dk.AllOf()
    with pytest.raises(TypeError, match="AllOf: every criterion must be a StoppingCriterion, got '!'"):
        dk.AllOf(A, "!")  # type: ignore[arg-type]
