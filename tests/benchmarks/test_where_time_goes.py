"""The parts of a run are told apart, and add up."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import pytest
import torch

from tests.benchmarks.scripts import script

SCRIPT = script("where_time_goes")


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("mkldnn::_linear_pointwise", "linear layers"),
        ("aten::addmm", "linear layers"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::native_layer_norm", "other operations"),
        ("aten::index_copy_", "other operations"),
    ],
)
def test_operations_are_told_apart_by_their_names(operation: str, kind: str) -> None:
    assert SCRIPT.kind_of(operation) == kind


def event(name: str, start: float, end: float, own: float) -> SimpleNamespace:
    """An event of torch's profiler, in microseconds."""
    return SimpleNamespace(
        name=name, time_range=SimpleNamespace(start=start, end=end), self_cpu_time_total=own
    )


class Profiled:
    """A profiler that has seen two passes of 50 microseconds each."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def events(self) -> list[SimpleNamespace]:
        return [
            event("aten::linear", 5, 9, 100.0),  # before the first pass
            event("a pass of the model", 10, 60, 1.0),
            event("aten::addmm", 12, 32, 20.0),
            event("aten::add", 70, 90, 100.0),  # between the passes
            event("a pass of the model", 100, 150, 1.0),
            event("aten::_scaled_dot_product_attention", 105, 115, 10.0),
            event("aten::mm", 120, 125, 5.0),
            event("aten::layer_norm", 130, 145, 15.0),
            event("aten::sum", 160, 170, 100.0),  # after the last pass
        ]


def test_a_pass_is_split_by_its_operations_and_the_rest_is_no_operation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SCRIPT, "profile", lambda **_: Profiled())
    monkeypatch.setattr(SCRIPT, "decode", lambda *_: None)
    assert SCRIPT.shares(None, None) == {
        "linear layers": 0.25,
        "attention": 0.1,
        "other operations": 0.15,
        "no operation": 0.5,
    }


def test_the_parts_of_a_run_add_up_to_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = {"linear layers": 0.5, "attention": 0.25, "other operations": 0.125, "no operation": 0.125}
    monkeypatch.setattr(SCRIPT, "perf_counter", itertools.count().__next__)  # a second from call to call
    monkeypatch.setattr(SCRIPT, "shares", lambda *_: split)
    monkeypatch.setattr(SCRIPT, "bandwidth", lambda: 1e6)
    monkeypatch.setattr(SCRIPT, "multiplications", lambda: 1e6)
    out = tmp_path / "out.json"
    SCRIPT.main(repeats=1, threads=1, only="L, 1 x 32, 64", quick=True, out=out)
    (work,) = json.loads(out.read_text())["work"]
    parts = work["parts_seconds"]
    assert list(parts) == list(SCRIPT.PARTS)
    assert parts["prompt"] == 1
    passes = sum(parts[kind] for kind in split)
    assert {kind: share * passes for kind, share in split.items()} == {kind: parts[kind] for kind in split}
    # One second before the prompt, one between any two of prompt and passes, one after the last pass.
    assert parts["decoder"] == passes + 2
    assert sum(parts.values()) == work["median_seconds"]
    assert work["floor_seconds"]["reading"] > 0


def test_a_profiled_run_is_split_into_all_kinds() -> None:
    bench = SCRIPT.Bench("S", "cpu", torch.float32, 1, quick=True)
    found = SCRIPT.shares(bench, SCRIPT.CPU_WORKS[0].in_small())
    assert list(found) == ["linear layers", "attention", "other operations", "no operation"]
    assert sum(found.values()) == pytest.approx(1)
