import inspect
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from tests.benchmarks.scripts import BENCHMARKS, script

ALL = script("all")
RUN = [one for one in ALL.SCRIPTS if one.runs_in_small]


def commands() -> set[str]:
    """Files that can be run."""
    return {path.name for path in BENCHMARKS.glob("*.py") if "typer.run(main)" in path.read_text()}


def test_every_script_is_run_or_named_with_a_reason() -> None:
    listed = [one.name for one in ALL.SCRIPTS] + list(ALL.NOT_RUN)
    assert len(set(listed)) == len(listed)
    assert commands() - {"all.py"} == set(listed)


@pytest.mark.parametrize("one", ALL.SCRIPTS, ids=lambda one: one.name)
def test_every_script_has_the_options_it_is_run_with(one: object) -> None:
    if one.needs_pairs and find_spec("sacrebleu") is None:
        pytest.skip("needs sacrebleu")
    options = inspect.signature(script(one.name.removesuffix(".py")).main).parameters
    wanted = {"threads", "note", "out", "repeats"}
    wanted |= {"quick"} if one.runs_in_small else set()
    wanted |= {"device"} if len(one.devices) > 1 else set()
    wanted |= {"pairs"} if one.needs_pairs else set()
    assert wanted <= options.keys()
    # A script writes where its name says, unless told otherwise.
    assert options["out"].default is None


def test_what_is_left_out_has_a_reason(tmp_path: Path) -> None:
    plain, one_device, pairs = (
        ALL.Script("a.py"),
        ALL.Script("b.py", ("cpu",)),
        ALL.Script("c.py", ("cpu",), needs_pairs=True, runs_in_small=False),
    )
    assert ALL.why_not(plain, "cuda", None, quick=False) is None
    assert ALL.why_not(one_device, "cuda", None, quick=False) == "measures the cpu only"
    assert "--pairs" in ALL.why_not(pairs, "cpu", None, quick=True)
    assert ALL.why_not(pairs, "cpu", tmp_path, quick=False) is None
    small = ALL.Script("d.py", ("cpu",), needs_pairs=True)
    assert ALL.why_not(small, "cpu", None, quick=True) is None


def test_what_is_run_says_where_and_for_how_many_threads(tmp_path: Path) -> None:
    one = ALL.Script("a.py")
    words = ALL.command(one, "cuda", None, "quiet", threads=1, folder=tmp_path)
    assert words[2:] == [
        *("--note", "quiet", "--device", "cuda", "--threads", "1"),
        *("--quick", "--out", str(tmp_path / "a.json")),
    ]
    one = ALL.Script("a.py", ("cpu",), needs_pairs=True)
    words = ALL.command(one, "cpu", tmp_path, "", threads=None, folder=None)
    assert words[2:] == [str(tmp_path), "--note", ""]


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two scripts, one of which fails."""
    (tmp_path / "good.py").write_text("import sys; print(sys.argv)")
    (tmp_path / "bad.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(ALL, "HERE", tmp_path)
    scripts = [
        ALL.Script("bad.py"),
        ALL.Script("good.py"),
        ALL.Script("other.py", ("cpu",), needs_pairs=True),
    ]
    monkeypatch.setattr(ALL, "SCRIPTS", scripts)
    return tmp_path


@pytest.mark.usefixtures("stand_ins")
def test_one_that_fails_is_said_and_the_others_run(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        ALL.main()
    assert ended.value.exit_code == 1
    said = capfd.readouterr().out
    assert "--device" in said
    assert re.search(r"^bad\.py +\d+\.\d s, failed with 3$", said, flags=re.MULTILINE)
    assert re.search(r"^good\.py +\d+\.\d s$", said, flags=re.MULTILINE)
    assert re.search(r"^other\.py +left out: needs the archive", said, flags=re.MULTILINE)
    assert re.search(r"^train_en_fr\.py +left out: trains", said, flags=re.MULTILINE)


@pytest.mark.usefixtures("stand_ins")
def test_only_some_run_and_none_of_them_failed(capfd: pytest.CaptureFixture[str]) -> None:
    ALL.main(only="good")
    assert "bad" not in capfd.readouterr().out
