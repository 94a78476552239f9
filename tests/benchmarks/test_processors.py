"""What `benchmarks/processors.py` measures, in small."""

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import decodekit as dk

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# What needs a tokenizer, or is a part of something else.
NOT_MEASURED = {"Chain", "Grammar", "TokenHealing"}


def script() -> ModuleType:
    """The script, which finds its cases beside it."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import processors  # noqa: PLC0415 - from that folder
    finally:
        sys.path.remove(str(BENCHMARKS))
    return processors


SCRIPT = script()


@pytest.mark.parametrize("case", SCRIPT.CASES, ids=lambda case: case.name)
def test_both_contenders_give_the_same_scores_before_they_are_timed(case: object) -> None:
    setting = SCRIPT.Setting.random(2, 1500, 30, 16, 4, device="cpu", seed=0)
    with torch.inference_mode():
        steps = SCRIPT.contenders(case, setting)
        found = SCRIPT.summary(SCRIPT.measure(steps, "cpu", repeats=2))
    assert (case.theirs is None) != ("ratio" in found)
    assert set(found["median_ms"]) == set(steps)


def test_every_processor_is_measured() -> None:
    processors = {
        name
        for name, value in ((name, getattr(dk, name)) for name in dir(dk))
        if isinstance(value, type) and issubclass(value, dk.LogitsProcessor) and not inspect.isabstract(value)
    }
    measured = {re.match(r"\w+", case.name).group() for case in SCRIPT.CASES}
    assert processors - NOT_MEASURED == measured


def test_the_ratio_is_that_of_the_medians() -> None:
    found = SCRIPT.summary(
        {"transformers": [1.0, 2.0, 9.0, 4.0, 5.0], "decodekit": [2.0, 1.0, 2.0, 3.0, 8.0]}
    )
    assert found["median_ms"] == {"transformers": 4.0, "decodekit": 2.0}
    assert found["quartiles_ms"]["transformers"] == [2.0, 5.0]
    assert found["ratio"] == 0.5


def test_a_case_whose_scores_differ_is_refused() -> None:
    case = SCRIPT.Case("TopK(2)", lambda _: dk.TopK(2), lambda _: lambda _, scores: scores)
    setting = SCRIPT.Setting.random(2, 10, 3, 1, 1, device="cpu", seed=0)
    with pytest.raises(SystemExit, match=r"^TopK\(2\): the scores differ"):
        SCRIPT.contenders(case, setting)
