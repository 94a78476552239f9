import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.scripts import BENCHMARKS, script

RECORD = script("record")
FILES = sorted((BENCHMARKS / "results").glob("*.json"))


def parts(path: Path) -> list[dict[str, Any]]:
    """The runs of a file: of each device, or the only one."""
    content = json.loads(path.read_text())
    return [content] if "date" in content else list(content.values())


def test_the_ratio_is_that_of_the_medians() -> None:
    times = {"transformers": [1.0, 2.0, 9.0, 4.0, 5.0], "decodekit": [2.0, 1.0, 2.0, 3.0, 8.0]}
    assert RECORD.summary(times, "ms", against="transformers") == {
        "median_ms": {"transformers": 4.0, "decodekit": 2.0},
        "quartiles_ms": {"transformers": [2.0, 5.0], "decodekit": [2.0, 3.0]},
        "ratio": 0.5,
    }


def test_who_is_alone_has_no_ratio() -> None:
    found = RECORD.summary({"decodekit": [0.25]}, "s", against="generate")
    assert found == {"median_s": {"decodekit": 0.25}, "quartiles_s": {"decodekit": [0.25, 0.25]}}


def test_a_record_says_when_where_with_what_and_how_often() -> None:
    found = RECORD.circumstances("cpu", 1, 7, ["rich", "no_such_package"], "quiet")
    assert list(found) == ["date", "device", "versions", "seed", "repeats", "note"]
    assert list(found["versions"]) == ["torch", "transformers", "rich", "python"]
    assert found["device"].startswith("1 thread of ")
    assert (found["repeats"], found["note"]) == (7, "quiet")


def test_other_devices_parts_stay(tmp_path: Path) -> None:
    out = tmp_path / "new" / "results.json"
    RECORD.write_part(out, "cuda", {"date": "then"})
    RECORD.write_part(out, "cpu", {"date": "now"})
    assert json.loads(out.read_text()) == {"cuda": {"date": "then"}, "cpu": {"date": "now"}}


def test_a_quick_run_is_never_written_among_the_results(tmp_path: Path) -> None:
    asked = tmp_path / "here.json"
    assert RECORD.place(asked, "name.json", quick=True) == asked
    assert RECORD.place(None, "name.json", quick=False) == BENCHMARKS / "results" / "name.json"
    assert BENCHMARKS not in RECORD.place(None, "name.json", quick=True).parents


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_recorded_run_says_its_circumstances(path: Path) -> None:
    for run in parts(path):
        assert {"date", "device", "versions", "seed", "repeats"} <= run.keys()
        assert {"torch", "transformers"} <= run["versions"].keys()
