"""Every public name keeps its laws, has its place in the documentation, and explains itself."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import decodekit as dk
import decodekit.compat.hf
import decodekit.testing
from tests.conformance import CONFORMANCE

ROOT = Path(__file__).parents[1]
API = "\n".join(page.read_text() for page in sorted((ROOT / "docs" / "api").glob("*.md")))
DOCUMENTED = re.findall(r"^::: (\S+)$", API, flags=re.MULTILINE)

LAWS = {name: row for name, row in CONFORMANCE.items() if callable(row)}
COVERED = {name: row for name, row in CONFORMANCE.items() if isinstance(row, str)}

# Made by a run, or the type of options: users do not build them, and related classes have the examples.
HANDED_OVER = {
    *(
        "CoTAnswers",
        "DecodeOptions",
        "EachOptions",
        "RunOptions",
        "StreamOptions",
        "ExtendedHypotheses",
        "Hypothesis",
        "DecodeRequest",
        "Limits",
        "ExpansionResult",
        "TextChunk",
        "ModelOutputs",
        "RowState",
        "StoppingContext",
    ),
    *("GroupHypotheses", "Scored", "Selection", "SearchStatus"),
}


def public_names(module: ModuleType) -> dict[str, type | Callable[..., object]]:
    """The names that a module exports: all but its submodules and names with an underscore."""
    values = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    return {name: value for name, value in values.items() if not isinstance(value, ModuleType)}


PUBLIC = {
    f"{module.__name__}.{name}": value
    for module in (dk, decodekit.testing, decodekit.compat.hf)
    for name, value in public_names(module).items()
}


def is_concrete(name: str, value: object) -> bool:
    """True for names that users call: not abstract, no protocol, no error, not handed over by a run."""
    if not isinstance(value, type):
        return True
    is_protocol = getattr(value, "_is_protocol", False)
    return not (
        inspect.isabstract(value) or is_protocol or issubclass(value, Exception) or name in HANDED_OVER
    )


def test_the_table_has_one_row_for_every_public_name() -> None:
    assert sorted(public_names(dk)) == sorted(CONFORMANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_every_law_holds_for(name: str) -> None:
    LAWS[name]()


@pytest.mark.parametrize(("name", "module"), COVERED.items())
def test_the_test_module_of_the_row_covers(name: str, module: str) -> None:
    assert re.search(rf"\b{name}\b", (ROOT / module).read_text(), flags=re.IGNORECASE)


def test_every_public_name_has_one_place_in_the_reference() -> None:
    assert sorted(PUBLIC) == sorted(DOCUMENTED)


def test_every_public_name_has_a_line_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert not {name for name in public_names(dk) if not re.search(rf"`{name}`", changelog)}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_docstring_says_in_one_line_what_it_is(name: str) -> None:
    summary, *rest = inspect.cleandoc(PUBLIC[name].__doc__ or "").split("\n")
    assert summary.endswith((".", ":"))
    assert not rest or rest[0] == ""


@pytest.mark.parametrize(
    "name", [name for name, value in PUBLIC.items() if is_concrete(name.rpartition(".")[2], value)]
)
def test_the_docstring_has_an_example_that_runs(name: str) -> None:
    docstring = inspect.cleandoc(PUBLIC[name].__doc__ or "")
    assert re.search(r"^Example:\n(    .*\n|\n)*?    >>> ", docstring, flags=re.MULTILINE)
