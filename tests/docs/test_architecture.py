"""The page of the architecture, and the decisions: paths, names, folders, imports and the order of a call."""

import re
import sys
from operator import attrgetter
from pathlib import Path

import pytest

import decodekit as dk
from tests.benchmarks.scripts import script
from tests.test_english import assert_few_pronouns, prose
from tests.test_layers import LOOSE, MAY_IMPORT, PACKAGE

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
TEXT = PAGE.read_text()
PATH = re.compile(r"`([\w./-]+(?:/|\.(?:py|pyi|md|json)))`")
STEP = re.compile(r"^\| \d+ \| `([\w/]+\.py)` \| `([\w.]+)` \|", flags=re.MULTILINE)


def section(title: str) -> str:
    """The part of the page under a heading."""
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("page", [PAGE, *DECISIONS], ids=lambda page: page.name)
def test_every_path_on_the_page_exists(page: Path) -> None:
    named = set(PATH.findall(page.read_text())) - {"generation/utils.py"}  # of transformers
    assert named
    assert not {path for path in named if not (ROOT / path).exists() and not (PACKAGE / path).exists()}


def test_every_public_name_on_the_page_exists() -> None:
    names = re.findall(r"`decodekit\.(\w+)`", TEXT)
    assert names
    assert not [name for name in names if not hasattr(dk, name)]


def test_the_folders_are_those_of_the_package() -> None:
    rows = re.findall(r"^\| `([\w/]+)/` \|", section("The folders"), flags=re.MULTILINE)
    folders = {
        path.parent.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("__init__.py")
        if path.parent != PACKAGE and path.parent.name != "_shared"
    }
    assert sorted(rows) == sorted(folders | {"assets"})
    assert all(f"`{name}.py`" in section("The folders") for name in LOOSE)


def test_the_rules_of_imports_are_those_of_the_test() -> None:
    above: list[str] = []
    rules = {}
    for names, text in re.findall(r"^\| (`.*?) \| (.*?) ?\|$", section("Imports"), re.MULTILINE):
        allowed, _, rest = text.partition(" except ")
        several = re.findall(r"`([\w/]+)`", names)
        listed = above if allowed == "all of these" else re.findall(r"`([\w/]+)`", allowed)
        for name in several:
            rules[name] = sorted(set(listed) - set(re.findall(r"`([\w/]+)`", rest)))
        above = [*above, *several]
    expected = {
        name: sorted(folder for folder in allowed if (PACKAGE / folder).is_dir())
        for name, allowed in MAY_IMPORT.items()
        if (PACKAGE / name).is_dir()
    }
    assert expected == rules


def test_the_rows_of_the_call_are_functions_in_the_order_of_a_second_call() -> None:
    steps = STEP.findall(TEXT)
    for path, function in steps:
        module = ".".join(("decodekit", *path.removesuffix(".py").split("/")))
        __import__(module)
        assert callable(attrgetter(function)(sys.modules[module])), (path, function)
    call_path = script("call_path")
    called = call_path.functions_called(call_path.CALLS["HFModel"]())
    order = [step for step in called if step in steps]
    assert order == steps


def test_the_decisions_use_few_pronouns_and_the_page_links_each_of_them() -> None:
    assert_few_pronouns({page.name: prose(page.read_text()) for page in DECISIONS})
    for page in DECISIONS:
        assert f"(decisions/{page.name})" in TEXT
        text = page.read_text()
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, flags=re.MULTILINE) == [
            "Context",
            "Decision",
            "Reasons",
            "Consequences",
        ]
