"""What `benchmarks/processors.py` measures, in small."""

import inspect
import re

import pytest
import torch

import decodekit as dk
from tests.benchmarks.scripts import script

# What needs a tokenizer, or is a part of something else.
NOT_MEASURED = {"Chain", "Grammar", "TokenHealing"}


SCRIPT = script("processors")


@pytest.mark.parametrize("case", SCRIPT.CASES, ids=lambda case: case.name)
def test_both_contenders_give_the_same_scores_before_they_are_timed(case: object) -> None:
    setting = SCRIPT.Setting.random(2, 1500, 30, 16, 4, device="cpu", seed=0)
    with torch.inference_mode():
        steps = SCRIPT.contenders(case, setting)
        found = SCRIPT.summary(SCRIPT.measure(steps, "cpu", repeats=2), "ms", against="transformers")
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


def test_a_case_whose_scores_differ_is_refused() -> None:
    case = SCRIPT.Case("TopK(2)", lambda _: dk.TopK(2), lambda _: lambda _, scores: scores)
    setting = SCRIPT.Setting.random(2, 10, 3, 1, 1, device="cpu", seed=0)
    with pytest.raises(SystemExit, match=r"^TopK\(2\): the two processors return different scores"):
        SCRIPT.contenders(case, setting)
