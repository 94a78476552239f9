"""What `benchmarks/peers.py` measures, in small."""

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script() -> ModuleType:
    """The script."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import peers  # noqa: PLC0415 - from that folder
    finally:
        sys.path.remove(str(BENCHMARKS))
    return peers


SCRIPT = script()
SMALL = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 4096}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401 - a class of the script
    """Everybody, around a small model."""
    monkeypatch.setitem(SCRIPT.SHAPES, "S", SMALL)
    return SCRIPT.Bench("S", torch.get_num_threads())


@pytest.mark.parametrize("work", SCRIPT.WORKS, ids=lambda work: work.name)
def test_everybody_says_the_same(work: Any, bench: Any) -> None:  # noqa: ANN401
    small = replace(work, prompts=2, length=5, new=6)
    expected = bench.run_of("generate", small)()
    assert bench.run_of("decodekit", small)() == expected
    assert len(expected) == 2 * max(work.samples, 1)
    if not work.samples and find_spec("ctranslate2") is not None:
        assert bench.run_of("ctranslate2", small)() == expected


def test_texts_that_differ_are_refused(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    monkeypatch.setattr(bench, "_decode", lambda *_: [[0]])
    with pytest.raises(SystemExit, match="the tokens differ"):
        SCRIPT.measure(bench, replace(SCRIPT.WORKS[1], prompts=1, length=3, new=2), 1, compiled=False)


def test_the_cache_is_counted_by_hand(bench: Any) -> None:  # noqa: ANN401
    work = replace(SCRIPT.WORKS[0], prompts=2, length=6, new=4, beams=3)
    token = 2 * 2 * 32 * 4  # keys and values of two layers, 32 wide, in float32
    # Room for all that may come: a prompt's columns and three slots a step.
    assert SCRIPT.cache_bytes(bench, work) == {
        "generate": 6 * 9 * token,
        "decodekit": 2 * (6 + 3 * 4) * token,
    }


def test_the_json_has_every_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCRIPT.SHAPES, "S", SMALL)
    works = [replace(work, prompts=1, length=4, new=3) for work in SCRIPT.WORKS if work.shape == "S"]
    monkeypatch.setattr(SCRIPT, "WORKS", works)
    monkeypatch.setattr(SCRIPT, "bandwidth", lambda: 1e9)
    out = tmp_path / "results.json"
    SCRIPT.main(repeats=2, threads=torch.get_num_threads(), only="", compiled=False, note="small", out=out)
    record = json.loads(out.read_text())
    assert [work["name"] for work in record["work"]] == [work.name for work in works]
    found = record["work"][0]
    medians = found["median_seconds"]
    assert found["ratios"]["generate"] == pytest.approx(medians["decodekit"] / medians["generate"], abs=0.05)
    assert found["floor_seconds"] > 0
    assert found["same_texts"]["decodekit"] == 1.0
