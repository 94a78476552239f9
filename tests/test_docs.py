"""The documentation says what is so: its code runs, prints what the page shows, and every page is found.

After a change of what is printed: `pytest tests/test_docs.py -n 0 --update-examples`, then read the diff.
"""

import re
from collections.abc import Iterator
from importlib.metadata import metadata, version
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pytest_examples import EvalExample, find_examples

from decodekit import bundled_path
from decodekit.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
MODEL_CARD = bundled_path() / "README.md"  # a page of the documentation includes it
OUTSIDE = [*sorted(ROOT.glob("*.md")), MODEL_CARD]  # pages include some of them
WITH_CODE = [page for page in (*OUTSIDE, *PAGES) if any(find_examples(page))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def navigation(entry: str | list[Any] | dict[str, Any]) -> Iterator[str]:
    """Every page of a part of mkdocs' navigation."""
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from navigation(part)


@pytest.mark.parametrize("page", WITH_CODE, ids=name)
def test_every_code_block_runs_and_prints_what_the_page_shows(page: Path, eval_example: EvalExample) -> None:
    eval_example.set_config(line_length=110)
    run = eval_example.run_print_update if eval_example.update_examples else eval_example.run_print_check
    names: dict[str, Any] = {}  # a page is read from top to bottom: each block goes on from the one before
    for example in find_examples(page):
        names = run(example, module_globals=names)


def test_every_page_is_in_the_navigation_once() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    expected = [page.relative_to(DOCS).as_posix() for page in PAGES]
    assert expected == sorted(navigation(settings["nav"]))


@pytest.mark.parametrize("page", [*OUTSIDE, *PAGES], ids=name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    tests = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    named = re.findall(r"`(test_\w+|tests/[\w/]+\.py)`", page.read_text())
    functions = set(re.findall(r"^def (test_\w+)", "\n".join(tests.values()), flags=re.MULTILINE))
    assert not set(named) - functions - set(tests)


def test_every_option_of_the_command_line_is_on_its_page() -> None:
    page = (DOCS / "cli.md").read_text()
    for command, group in typer.main.get_group(app).commands.items():
        assert f"## `{command}`" in page
        options = {option for parameter in group.params for option in parameter.opts if option[:2] == "--"}
        assert not {option for option in options - {"--help"} if f"`{option}" not in page}


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    newest, *_ = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest == version("decodekit")


def test_the_citation_names_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version("decodekit")
    assert citation["license"] == metadata("decodekit")["License-Expression"]


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda file: file.name)
def test_every_file_for_github_is_valid_yaml(file: Path) -> None:
    assert isinstance(yaml.safe_load(file.read_text()), dict)


def test_the_site_loads_nothing_from_elsewhere() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    loaded = [*settings.get("extra_css", []), *settings.get("extra_javascript", [])]
    assert not [path for path in loaded if "//" in path]
    assert settings["theme"]["font"] is False
