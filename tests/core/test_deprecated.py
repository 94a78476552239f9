import ast
import inspect
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

import decodekit
from decodekit.core.deprecated import renamed_keywords

PACKAGE = Path(decodekit.__file__).parent


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package whose names are imported lazily, as decodekit's are; `NewName` was called `OldName`."""
    package = tmp_path / "toy_package"
    package.mkdir()
    (package / "part.py").write_text("class NewName: pass\n")
    (package / "__init__.pyi").write_text("from .part import NewName as NewName\n")
    (package / "__init__.py").write_text(
        "import lazy_loader\n"
        "from decodekit.core.deprecated import renamed_names\n"
        "_lookup, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)\n"
        "__getattr__ = renamed_names(__name__, _lookup, {'OldName': 'NewName'}, removed_in='9.0.0')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import toy_package  # type: ignore[import-not-found] # noqa: PLC0415 - it exists from here on

    yield toy_package
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_package"]:
        del sys.modules[name]


def test_an_old_name_is_the_new_one_and_warns_where_it_is_used(toy: ModuleType) -> None:
    message = r"^toy_package\.OldName is now toy_package\.NewName, and will be removed in 9\.0\.0\.$"
    with pytest.warns(DeprecationWarning, match=message) as warned:
        old = toy.OldName
    assert toy.NewName is old
    assert [warning.filename for warning in warned] == [__file__]


def test_an_old_name_can_be_imported(toy: ModuleType) -> None:
    with pytest.warns(DeprecationWarning, match="will be removed"):
        from toy_package import OldName  # noqa: PLC0415
    assert toy.NewName is OldName


def test_a_current_name_does_not_warn_and_an_unknown_one_is_refused(toy: ModuleType) -> None:
    assert toy.NewName.__name__ == "NewName"
    with pytest.raises(AttributeError, match="Neither"):
        toy.Neither  # noqa: B018
    assert dir(toy) == ["NewName"]  # old names are not listed


@renamed_keywords(removed_in="9.0.0", width="beams", last="end_ids")
def search(prompt: str, *, beams: int = 1, end_ids: int = 0) -> tuple[str, int, int]:
    return prompt, beams, end_ids


@renamed_keywords(removed_in="9.0.0", width="beams")
@dataclass(frozen=True)
class Search:
    beams: int


def test_an_old_keyword_is_the_new_one_and_warns_where_it_is_used() -> None:
    message = r"^search: width is now beams, and will be removed in 9\.0\.0\.$"
    with pytest.warns(DeprecationWarning, match=message) as warned:
        assert search("a", width=3, end_ids=2) == ("a", 3, 2)  # type: ignore[call-arg]
    assert [warning.filename for warning in warned] == [__file__]
    with pytest.warns(DeprecationWarning, match="is now") as warned:
        assert search("a", width=3, last=2) == ("a", 3, 2)  # type: ignore[call-arg]
    assert len(warned) == 2


def test_an_old_keyword_of_a_class_is_the_new_one_and_the_class_stays_a_class() -> None:
    with pytest.warns(DeprecationWarning, match=r"^Search: width is now beams") as warned:
        found = Search(width=3)  # type: ignore[call-arg]
    assert [warning.filename for warning in warned] == [__file__]
    assert isinstance(found, Search)
    assert Search(3) == found


def test_current_arguments_do_not_warn() -> None:
    with warnings.catch_warnings(action="error"):
        assert search("a", beams=3) == ("a", 3, 0)
        assert Search(beams=3) == Search(3)


def test_both_keywords_at_once_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^search: width is now beams, got both\. Leave width out\.$"):
        search("a", width=3, beams=3)  # type: ignore[call-arg]


def test_the_signature_shows_the_current_keywords() -> None:
    assert list(inspect.signature(search).parameters) == ["prompt", "beams", "end_ids"]
    assert list(inspect.signature(Search).parameters) == ["beams"]


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def removals(source: str) -> list[str]:
    """The versions of removal that a file gives to the functions above."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    keywords = (keyword for call in calls for keyword in call.keywords if keyword.arg == "removed_in")
    return [keyword.value.value for keyword in keywords if isinstance(keyword.value, ast.Constant)]


def test_no_deprecation_outlives_its_version() -> None:
    assert removals("@renamed_keywords(removed_in='0.3.0', width='beams')\ndef search(beams): ...") == [
        "0.3.0"
    ]
    overdue = {
        path.name: due
        for path in PACKAGE.rglob("*.py")
        for due in removals(path.read_text())
        if numbers(due) <= numbers(version("decodekit"))
    }
    assert overdue == {}
