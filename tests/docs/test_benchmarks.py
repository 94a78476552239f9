"""What `docs/_hooks/benchmarks.py` makes of the recorded runs."""

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [path.read_text() for path in DOCS.glob("*.md")]


def hook(name: str) -> ModuleType:
    """A hook, with its folder to import from, as mkdocs loads it."""
    sys.path.insert(0, str(DOCS / "_hooks"))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(DOCS / "_hooks"))


HOOK, CELLS, BARS, PEERS = hook("benchmarks"), hook("cells"), hook("bars"), hook("peer_tables")


@pytest.mark.parametrize("name", HOOK.SHOWN)
def test_every_marker_is_on_a_page_and_is_replaced(name: str) -> None:
    marker = f"<!-- {name} -->"
    assert any(marker in page for page in PAGES)
    shown = HOOK.on_page_markdown(f"before\n\n{marker}\n\nafter")
    assert marker not in shown
    assert re.fullmatch(r"before\n\n.+\n\nafter", shown, flags=re.DOTALL)


def test_every_file_of_results_is_shown() -> None:
    shown = set(HOOK.SHOWN) | {"pictures of decoders"}
    assert {path.stem for path in HOOK.RESULTS.glob("*.json")} <= shown


def test_without_a_file_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HOOK, "RESULTS", tmp_path)
    shown = {name: show() for name, show in HOOK.SHOWN.items()}
    gpu = shown.pop("peers_cuda")
    assert set(shown.values()) == {HOOK.NOT_YET}
    assert gpu.startswith("No GPU was available")


@pytest.mark.parametrize(
    ("ratio", "most", "said"),
    [(0.2, 0.2, "0.20, met"), (0.21, 0.2, "0.20, not met"), (None, 0.2, "0.20"), (0.2, None, "")],
)
def test_whether_a_bar_is_met_is_computed(ratio: float | None, most: float | None, said: str) -> None:
    assert CELLS.met(ratio, most) == said


def test_the_longest_bar_takes_the_width_and_the_floor_is_grey() -> None:
    picture = BARS.bars("A & B", {"generate": 4.0, "decodekit": 1.0, "floor": 0.5}, "s")
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', picture)]
    assert widths == [380, 95, 47.5]
    colours = re.findall(r'fill="(#\w+)"', picture)
    assert len(set(colours)) == 3
    assert "A &amp; B" in picture
    assert "NaN" not in BARS.bars("nothing", {"decodekit": 0.0}, "s")


def test_without_a_gpu_every_bar_is_listed_and_no_number_is_made_up() -> None:
    shown = PEERS.peers_on_gpu(None, None)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if line[:1] == "|"
    ]
    works = PEERS._works()
    bars = sum(len(work.bars) + (work.cache_bar is not None) for work in works.CUDA_WORKS)
    assert len(rows) == 2 + bars + 1
    assert {row[3] for row in rows[2:]} == {""}
    assert {work.name for work in works.CUDA_WORKS} < {row[0] for row in rows}
    assert rows[-1][0] == "a step without the model, 64 rows x 151,936 tokens"
    assert not re.search(r"\bmet\b", shown)


@pytest.fixture
def run() -> dict[str, Any]:
    """A run on a GPU, as the script writes it."""
    work = {
        "name": "GPT-2 XL, 8 x 512, 128 new, 5 beams",
        "bars": {"generate": 0.25, "compiled": 0.5},
        "cache_bar": None,
        "median_seconds": {"generate": 8.0, "compiled": 4.0, "vllm": 3.0, "decodekit": 1.0},
        "quartiles_seconds": {name: [0.5, 9.5] for name in ("generate", "compiled", "vllm", "decodekit")},
        "ratios": {"generate": 0.125, "compiled": 0.25, "vllm": 0.333, "floor": 2.0},
        "same_texts": {"generate": 1.0, "compiled": 1.0, "vllm": None, "decodekit": 0.75},
        "first_use_seconds": {"generate": 9.0, "compiled": 77.0, "vllm": 3.0, "decodekit": 5.0},
        "peak_memory_mb": {"generate": 900.0, "compiled": 950.0, "decodekit": 300.0},
        "floor_seconds": 0.5,
        "cache_ratio": 0.25,
    }
    return {
        "date": "2000-01-01",
        "device": "a GPU",
        "versions": {"torch": "2"},
        "note": "a test",
        "repeats": 3,
        "models": {"GPT-2 XL": "random"},
        "captured": True,
        "work": [work],
    }


def test_a_run_on_a_gpu_shows_all_peers_their_bars_and_what_is_not_the_same(run: dict[str, Any]) -> None:
    shown = PEERS.peers_on_gpu(run, None)
    assert "No GPU" not in shown
    name = "GPT-2 XL, 8 x 512, 128 new, 5 beams"
    assert f"| {name} | `generate()` | time | **0.12** | 0.25, met |" in shown
    assert f"| {name} | floor | time | **2.00** |  |" in shown
    assert "vLLM not comparable, decodekit 75%" in shown
    assert "`generate()`, static cache, compiled 77 s" in shown
    assert f"| {name} | 900 | 950 | 300 |" in shown
    assert shown.count("<svg") == 1
    assert "a test" in shown


def test_the_recorded_runs_say_of_every_bar_whether_it_is_met() -> None:
    path = HOOK.RESULTS / "peers_cpu.json"
    work = json.loads(path.read_text())["work"]
    bars = sum(len(one["bars"]) + (one["cache_bar"] is not None) for one in work)
    assert len(re.findall(r"\d, (?:not )?met \|", HOOK.SHOWN["peers_cpu"]())) == bars
