"""What every test, and every example in a docstring, finds in place."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from typing import Any

import pytest
import torch
import transformers

import decodekit as dk

torch.set_num_threads(1)  # the tests run side by side
transformers.logging.disable_progress_bar()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device, and there is none")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _names(doctest_namespace: dict[str, Any]) -> None:
    """The names that examples in docstrings use without importing them."""
    for module in (dk.testing, dk):
        doctest_namespace.update({name: getattr(module, name) for name in dir(module) if name[0] != "_"})
    doctest_namespace.update({"dk": dk, "torch": torch, "transformers": transformers})
