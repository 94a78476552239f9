"""What every test, and every example in a docstring, finds in place."""

import gc
import os
import re

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

import decodekit as dk

torch.set_num_threads(1)  # the tests run side by side
gc.set_threshold(100_000, 20, 50)  # to look through a million objects of loaded modules takes half a second
# The same cases in every run, on a machine of any speed.
settings.register_profile(
    "decodekit",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("decodekit")
# Hypothesis also draws constants from the source of the loaded modules. The loaded modules, and with them the
# cases, would depend on the tests that ran before in the same worker.
providers._get_local_constants = lambda: providers._local_constants  # noqa: SLF001
transformers.logging.disable_progress_bar()

LAWS = re.compile(r"keeps?_the_(contract|laws)")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_speed(items)
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device, and there is none")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)


def mark_speed(items: list[pytest.Item]) -> None:
    """Mark slow tests, and every second slow case of a test as exhaustive."""
    cases: Counter[str] = Counter()
    slow_cases: Counter[str] = Counter()
    for item in items:
        test = item.nodeid.partition("[")[0]
        marker = item.get_closest_marker("mostly_slow")
        # Laws run over many random cases: the quick run takes the first configuration of each part.
        share = marker.args[0] if marker else 8 if LAWS.search(test) else 1
        if cases[test] % share or "slow" in item.keywords:
            item.add_marker("slow")
            slow_cases[test] += 1
            if slow_cases[test] % 2 == 0:
                item.add_marker("exhaustive")
        elif cases[test] % 4:  # the quick run takes every fourth case of the other tests
            item.add_marker("slow")
        cases[test] += 1


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Start every test with the same random numbers, in any order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, Any]) -> None:
    """The names that examples in docstrings use without importing them."""
    for module in (dk.testing, dk):
        doctest_namespace.update({name: getattr(module, name) for name in dir(module) if name[0] != "_"})
    doctest_namespace.update({"dk": dk, "torch": torch, "transformers": transformers})
