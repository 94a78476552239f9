"""The parts of a run are told apart, and add up."""

import json
from pathlib import Path

import pytest

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


def test_the_parts_of_a_run_add_up_to_about_all_of_it(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    SCRIPT.main(repeats=1, threads=1, only="L, 1 x 32, 64", quick=True, out=out)
    (work,) = json.loads(out.read_text())["work"]
    parts = work["parts_seconds"]
    assert list(parts) == list(SCRIPT.PARTS)
    assert all(seconds >= 0 for seconds in parts.values())
    assert sum(parts.values()) == pytest.approx(work["median_seconds"], rel=0.05, abs=1e-3)
    assert work["floor_seconds"]["reading"] > 0
