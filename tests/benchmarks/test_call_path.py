import json
from pathlib import Path

import pytest

from tests.benchmarks.scripts import script

SCRIPT = script("call_path")


def test_files_count_in_the_order_in_which_their_functions_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SCRIPT, "PACKAGE", tmp_path)
    names: dict[str, object] = {}
    for name, source in {
        "second.py": "def second(): pass",
        "unused.py": "def unused(): pass",
        "first.py": "def first(): second(); second()",
        "module.py": "class Body:\n    value = 1",
    }.items():
        exec(compile(source, str(tmp_path / name), "exec"), names)  # noqa: S102

    def call() -> None:
        exec(compile("class Body:\n    value = 1", str(tmp_path / "body.py"), "exec"), {})  # noqa: S102
        names["first"]()

    assert SCRIPT.files_called(call) == ["first.py", "second.py"]


def test_a_call_over_a_toy_model_begins_with_the_search_and_ends_with_the_result() -> None:
    files = SCRIPT.files_called(SCRIPT.call_over(SCRIPT.TOY))
    assert "decoders/beam/search.py" in files[:2]
    assert files[-1] == "core/result.py"
    assert not [name for name in files if name.startswith("models/hf/")]
    assert SCRIPT.files_called(SCRIPT.call_over(SCRIPT.TOY)) == files


def test_the_json_has_the_files_of_each_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SCRIPT, "CALLS", {"toy": lambda: dict})
    SCRIPT.main(as_json=True)
    assert json.loads(capsys.readouterr().out) == {"toy": []}
    SCRIPT.main(as_json=False)
    assert capsys.readouterr().out.startswith("toy: 0 files\n")


@pytest.mark.parametrize(("model", "most"), [("HFModel", 35), ("MarkovModel", 20)])
def test_a_call_passes_through_few_files(model: str, most: int) -> None:
    files = SCRIPT.files_called(SCRIPT.CALLS[model]())
    assert len(files) <= most, f"{len(files)} files: {', '.join(files)}"
