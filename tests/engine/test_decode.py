"""The option `stop`, as it is read; the other options are in tests/engine/test_loop.py."""

from typing import Any

import pytest

import decodekit as dk
from decodekit.engine.decode import read_criteria, read_request
from decodekit.testing import HashModel

ENDS, TIME = dk.EndIds(1), dk.MaxTime(9)


@pytest.mark.parametrize(
    ("stop", "criteria"),
    [
        ((), ()),
        ([], ()),
        (ENDS, (ENDS,)),
        ("end", (dk.StopStrings("end"),)),
        (["one", "two"], (dk.StopStrings("one"), dk.StopStrings("two"))),
        ([ENDS, "end", TIME], (ENDS, dk.StopStrings("end"), TIME)),
        (ENDS | TIME, (ENDS, TIME)),
        ([TIME | (ENDS | TIME), "end"], (TIME, ENDS, TIME, dk.StopStrings("end"))),
        (ENDS & TIME, (ENDS & TIME,)),
    ],
)
def test_stop_takes_criteria_and_strings_one_or_several(
    stop: Any,  # noqa: ANN401
    criteria: tuple[dk.StoppingCriterion, ...],
) -> None:
    assert read_criteria(stop) == criteria


@pytest.mark.parametrize("stop", [None, 5, {ENDS}, dk.EndIds, {"a": ENDS}])
def test_stop_must_be_a_criterion_a_string_or_a_sequence(stop: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match="decode: stop must be a StoppingCriterion, a string, or a sequence"):
        dk.decode(HashModel(5), [[1]], dk.Greedy(), stop=stop, max_new_tokens=1)


@pytest.mark.parametrize("stop", [[None], [ENDS, 5], [["a"]], [dk.EndIds]])
def test_a_sequence_must_hold_criteria_and_strings(stop: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match="decode: stop must be a StoppingCriterion, a string, or a sequence"):
        dk.decode(HashModel(5), [[1]], dk.Greedy(), stop=stop, max_new_tokens=1)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="StopStrings: strings must be text of some length"):
        dk.decode(HashModel(5), [[1]], dk.Greedy(), stop="", max_new_tokens=1)


def test_the_clock_starts_with_the_request() -> None:
    model = HashModel(5)
    first, second = (read_request(model, [[1]], {"max_new_tokens": 1}) for _ in range(2))
    assert first.started <= second.started
    context = dk.Limits.of(first, vocab=5).context
    assert (context.started, context.vocabulary) == (first.started, model.vocabulary)
