import itertools

import pytest
import torch

from tests.benchmarks.scripts import script

MEASURING = script("measuring")


def test_contenders_run_in_turns() -> None:
    ran: list[str] = []
    found = MEASURING.in_turns(
        {name: lambda name=name: ran.append(name) for name in "ab"}, 3, clock=itertools.count().__next__
    )
    assert ran == list("ababab")
    assert found == {"a": [1, 1, 1], "b": [1, 1, 1]}


def test_a_gpus_memory_is_what_a_contender_has_at_most_and_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for name, value in {
        "reset_peak_memory_stats": None,
        "synchronize": None,
        "max_memory_allocated": 7e6,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda name=name, value=value: asked.append(name) or value)
    # 3 MB were there before its first use; 1 MB that it kept since then is in the 7.
    assert MEASURING.gpu_memory(lambda: asked.append("run"), 3_000_000) == 4.0
    assert asked == ["reset_peak_memory_stats", "run", "synchronize", "max_memory_allocated"]
