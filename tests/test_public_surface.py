"""The comparison of the public names with the last tag."""

import importlib.util
from pathlib import Path
from types import ModuleType

import griffe
import pytest


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "public_surface", Path(__file__).parents[1] / ".ci" / "public_surface.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SURFACE = script()


def test_names_are_removed_on_purpose_if_the_newest_version_says_so() -> None:
    older = "## 0.2.0\n\n### Removed\n\n* `C`\n"
    newest = "## 0.3.0\n\n### Removed\n\n* `A`\n\n### Added\n\n* `B`\n\n"
    assert SURFACE.removed_on_purpose(f"# Log\n\n{newest}{older}") == {"A"}
    assert SURFACE.removed_on_purpose("# Log\n\n## 0.3.0\n\n### Added\n\n* `B`\n") == set()


def test_without_a_tag_nothing_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert SURFACE.main(None) == 0
    assert capsys.readouterr().out.startswith("There is no tag yet")


def package(folder: Path, export: str, source: str) -> griffe.Object | griffe.Alias:
    """A package `decodekit` that exports from one internal module, with its names marked."""
    (folder / "decodekit").mkdir(parents=True)
    (folder / "decodekit" / "__init__.pyi").write_text(export)
    (folder / "decodekit" / "__init__.py").write_text("")
    (folder / "decodekit" / "internal.py").write_text(source)
    found = griffe.load("decodekit", search_paths=[folder], try_relative_path=False)
    SURFACE.mark_public(found)
    return found


OLD = "def exported(a, b): ...\ndef helper(a): ...\n"


@pytest.mark.parametrize(
    ("new", "changes"),
    [
        ("def exported(a, b): ...\n", []),  # the helper is internal
        ("def exported(a): ...\ndef helper(a): ...\n", ["Parameter was removed"]),
    ],
)
def test_only_exported_names_are_compared(new: str, changes: list[str], tmp_path: Path) -> None:
    export = "from .internal import exported as exported\n"
    before, after = package(tmp_path / "old", export, OLD), package(tmp_path / "new", export, new)
    found = griffe.find_breaking_changes(before, after)
    assert [change.kind.value for change in found] == changes
