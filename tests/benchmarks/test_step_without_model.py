"""What `benchmarks/step_without_model.py` measures, in small."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script() -> ModuleType:
    """The script."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import step_without_model  # noqa: PLC0415 - from that folder
    finally:
        sys.path.remove(str(BENCHMARKS))
    return step_without_model


SCRIPT = script()


@pytest.mark.parametrize("work", SCRIPT.WORKS, ids=lambda work: work.name)
def test_both_contenders_choose_the_same(work: object) -> None:
    with torch.inference_mode():
        first, second = (run() for run in SCRIPT.runs(work, 5000, "cpu", steps=2).values())
    assert torch.equal(first, second)


def test_contenders_that_do_not_choose_the_same_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        SCRIPT,
        "runs",
        lambda *_: {"transformers": lambda: torch.zeros(1), "decodekit": lambda: torch.ones(1)},
    )
    with pytest.raises(SystemExit, match="what is chosen differs"):
        SCRIPT.measure(SCRIPT.WORKS[0], 10, "cpu", 1, 1)


def test_the_json_has_every_work_and_keeps_other_devices(tmp_path: Path) -> None:
    out, threads = tmp_path / "results.json", torch.get_num_threads()
    out.write_text('{"cuda": {"date": "then"}}')
    SCRIPT.main(repeats=2, steps=1, vocab=100, threads=threads, device="cpu", out=out)
    record = json.loads(out.read_text())
    assert record["cuda"] == {"date": "then"}
    assert [work["name"] for work in record["cpu"]["work"]] == [work.name for work in SCRIPT.WORKS]
    found = record["cpu"]["work"][0]
    medians = found["median_ms"]
    assert found["ratio"] == pytest.approx(medians["decodekit"] / medians["transformers"], abs=0.01)
