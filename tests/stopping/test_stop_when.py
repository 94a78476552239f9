from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import HashModel, check_decoder
from decodekit.testing.strategies import prompts
from tests.stopping.scripted import Pieces, Scripted


def test_a_function_of_the_text_reads_the_new_text() -> None:
    read: list[str] = []

    def three_spaces(text: str) -> bool:
        read.append(text)
        return text.count(" ") == 3

    model = Scripted([[1, 0, 1, 0]], 3, Pieces(["a", " ", "\n"]))
    out = dk.decode(model, "a a a", dk.Greedy(), stop=dk.StopWhen(three_spaces), max_new_tokens=4)
    assert (out.lengths.item(), out.finish_reason) == (4, [["length"]])
    assert read == [" ", " a", " a ", " a a"]


def test_it_finishes_its_row_and_does_not_cut_the_text() -> None:
    model = Scripted([[0, 1, 0, 1], [0, 0, 0, 0]], 2, Pieces("ab"))
    out = dk.decode(model, ["a", "b"], dk.Greedy(), stop=dk.StopWhen(lambda t: "b" in t), max_new_tokens=4)
    assert out.texts == [["ab"], ["aaaa"]]
    assert out.finish_reason == [["stopped"], ["length"]]


def test_it_may_read_ids() -> None:
    stop = dk.StopWhen(lambda ids: ids == [1, 2, 3], ids=True, reason="counted")
    model = Scripted([[1, 2, 3, 4], [2, 3, 4, 5]], 6)
    out = dk.decode(model, [[5], [1, 1]], dk.Greedy(), stop=stop, max_new_tokens=4)
    assert out.hypotheses() == [[[1, 2, 3]], [[2, 3, 4, 5]]]
    assert out.finish_reason == [["counted"], ["length"]]


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(batch=prompts(vocab=5), seed=st.integers(0, 2**31), beams=st.integers(1, 4))
def test_under_beam_search_it_reads_hypotheses(batch: list[list[int]], seed: int, beams: int) -> None:
    model, search = HashModel(5, seed), dk.BeamSearch(beams, num_return=beams)
    by_ids = dk.decode(
        model, batch, search, stop=dk.StopWhen(lambda ids: sum(ids) > 6, ids=True), max_new_tokens=6
    )
    model.vocabulary = dk.Vocabulary(size=5, tokenizer=Pieces("01234"))
    stop = dk.StopWhen(lambda text: sum(map(int, text)) > 6)
    by_text = dk.decode(model, batch, search, stop=stop, max_new_tokens=6)
    assert by_ids.hypotheses() == by_text.hypotheses()
    for row, reasons in zip(by_text.hypotheses(), by_text.finish_reason, strict=True):
        for tokens, reason in zip(row, reasons, strict=False):
            assert sum(tokens[:-1]) <= 6
            assert (sum(tokens) > 6) == (reason == "stopped")


def test_it_keeps_the_laws() -> None:
    stop = dk.StopWhen(lambda ids: ids[-1:] == [4], ids=True)
    for decoder in (dk.Greedy(), dk.BeamSearch(3)):
        check_decoder(decoder, stop=stop, captures=False, max_examples=10)
    assert not stop.capturable


def test_an_error_of_the_function_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        dk.decode(
            HashModel(5), [[1]], dk.Greedy(), stop=dk.StopWhen(lambda _: 1 / 0, ids=True), max_new_tokens=2
        )


def test_text_needs_a_tokenizer_and_ids_do_not() -> None:
    with pytest.raises(dk.DecodekitError, match="StopWhen: a function of text needs a tokenizer"):
        dk.decode(HashModel(5), [[1]], dk.Greedy(), stop=dk.StopWhen(bool), max_new_tokens=2)
    dk.decode(HashModel(5), [[1]], dk.Greedy(), stop=dk.StopWhen(bool, ids=True), max_new_tokens=2)


@pytest.mark.parametrize("function", [None, "a", 5])
def test_the_function_must_be_callable(function: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match="StopWhen: function must be callable"):
        dk.StopWhen(function)


@pytest.mark.parametrize("reason", ["", None, 5])
def test_the_reason_must_be_text(reason: str) -> None:
    with pytest.raises(ValueError, match="StopWhen: reason must be text"):
        dk.StopWhen(bool, reason=reason)
