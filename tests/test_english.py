"""Docstrings and pages are plain English: a summary names its subject, and prose needs few pronouns."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import decodekit

ROOT = Path(__file__).parents[1]
PACKAGE = Path(decodekit.__file__).parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
FIRST_WORDS = re.compile(r"[`*]*(what|whether|how|which|who|whose|those|that)\b", flags=re.IGNORECASE)
PRONOUNS = re.compile(r"\b(what|those|whose|whoever|whatever|whom|who|others|nobody)\b", flags=re.IGNORECASE)
MOST_PER_THOUSAND = 4.0


def docstrings(source: str) -> Iterator[tuple[str, str]]:
    """The name and the docstring of every module, class and function of a file that has one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", "module"), text


def prose(page: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", page, flags=re.MULTILINE | re.DOTALL)


def counts(text: str) -> tuple[int, int]:
    """The number of pronouns, and of words."""
    return len(PRONOUNS.findall(text)), len(re.findall(r"[A-Za-z']+", text))


def assert_few_pronouns(texts: Mapping[str, str]) -> None:
    """Raise, with the ten files that have most pronouns, unless all texts together have few enough."""
    each = {name: counts(text) for name, text in texts.items()}
    pronouns, words = (sum(numbers) for numbers in zip(*each.values(), strict=True))
    worst = sorted(each, key=lambda name: each[name][0], reverse=True)[:10]
    listed = ", ".join(f"{name} {each[name][0]} of {each[name][1]}" for name in worst)
    per_thousand = 1000 * pronouns / words
    assert per_thousand <= MOST_PER_THOUSAND, f"{per_thousand:.1f} pronouns per 1,000 words: {listed}"


SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("path", SOURCES)
def test_a_summary_names_its_subject(path: str) -> None:
    summaries = {name: text.splitlines()[0] for name, text in docstrings(SOURCES[path])}
    assert {name: summary for name, summary in summaries.items() if FIRST_WORDS.match(summary)} == {}


def test_docstrings_use_few_pronouns() -> None:
    texts = {path: "\n".join(text for _, text in docstrings(source)) for path, source in SOURCES.items()}
    assert_few_pronouns(texts)


def test_pages_use_few_pronouns() -> None:
    assert_few_pronouns({path.relative_to(ROOT).as_posix(): prose(path.read_text()) for path in PAGES})


def test_pronouns_are_counted_in_prose_only() -> None:
    page = "Those who know.\n\n```python\nwhat = who\n```\n\nNobody's `what`.\n"
    assert counts(prose(page)) == (4, 5)


@pytest.mark.parametrize(
    ("summary", "begins_badly"),
    [
        ("What a search has proved.", True),
        ("`How` often.", True),
        ("That which is left.", True),
        ("Whatever.", False),
        ("True if the search has proved its result.", False),
        ("Howard's end.", False),
    ],
)
def test_first_words_are_compared_as_whole_words(summary: str, *, begins_badly: bool) -> None:
    assert (FIRST_WORDS.match(summary) is not None) == begins_badly
