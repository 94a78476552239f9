"""What `benchmarks/step_without_model.py` measures, in small."""

import json
from pathlib import Path

import pytest
import torch

from tests.benchmarks.scripts import script

SCRIPT = script("step_without_model")


@pytest.mark.parametrize("work", SCRIPT.WORKS, ids=lambda work: work.name)
def test_both_contenders_choose_the_same(work: object) -> None:
    with torch.inference_mode():
        first, second = (run() for run in SCRIPT.runs(work, 5000, "cpu", steps=2).values())
    assert torch.equal(first, second)


def test_contenders_that_do_not_choose_the_same_are_refused_unless_captured() -> None:
    contenders = {"transformers": lambda: torch.zeros(1), "decodekit": lambda: torch.ones(1)}
    with pytest.raises(SystemExit, match="the libraries choose different tokens"):
        SCRIPT.measure(contenders, "work", "cpu", 1, 1)
    times, is_same = SCRIPT.measure(contenders, "work", "cpu", 2, 1, captured=True)
    assert len(times["decodekit"]) == 2
    assert not is_same


def test_a_captured_step_is_asked_of_decodekit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr(SCRIPT.dk, "decode", lambda *_, **options: given.update(options))
    for capture in (True, False):
        given.clear()
        contenders = SCRIPT.runs(SCRIPT.Work("a step", "beams"), 50, "cpu", 1, capture=capture)
        with pytest.raises(AttributeError):  # nothing was decoded
            contenders["decodekit"]()
        assert given.get("capture", False) == capture


def test_the_bars_of_the_cpu_and_of_a_gpu_are_those_that_were_set() -> None:
    bars = {(work.name, device): bar for work in SCRIPT.WORKS for device, bar in work.bars.items()}
    assert {device for _, device in bars} == {"cpu", "cuda"}
    assert set(bars.values()) == {0.5, 0.2}


def test_the_json_has_every_work_and_keeps_other_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"transformers": [4.0, 8.0], "decodekit": [1.0, 2.0]}
    monkeypatch.setattr(SCRIPT, "in_turns", lambda *_: measured)
    monkeypatch.setattr(SCRIPT, "bandwidth", lambda _: 1e6)
    out, threads = tmp_path / "results.json", torch.get_num_threads()
    out.write_text('{"cuda": {"date": "then"}}')
    SCRIPT.main(repeats=2, steps=1, vocab=100, threads=threads, out=out)
    record = json.loads(out.read_text())
    assert record["cuda"] == {"date": "then"}
    assert [work["name"] for work in record["cpu"]["work"]] == [work.name for work in SCRIPT.WORKS]
    found = record["cpu"]["work"][0]
    assert found["is_same"]
    assert record["cpu"]["floor_ms"] > 0
    assert found["median_ms"] == {"transformers": 6000.0, "decodekit": 1500.0}
    assert found["ratio"] == 0.25
