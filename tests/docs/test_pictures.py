"""What `docs/_hooks/pictures.py` draws on the processors' page."""

import inspect
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from mkdocs.exceptions import PluginError

import decodekit as dk

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "api" / "processors.md").read_text()


def hook() -> ModuleType:
    """The hook, loaded by its path as mkdocs does."""
    spec = spec_from_file_location("pictures", DOCS / "_hooks" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PICTURES = hook()
# From one entry to the next: whatever stands between belongs to the first.
ENTRIES = re.findall(r"^::: decodekit\.(\w+)$(.*?)(?=^:::|\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
PROCESSORS = {
    name: below
    for name, below in ENTRIES
    if isinstance(getattr(dk, name), type)
    and issubclass(getattr(dk, name), dk.LogitsProcessor)
    and not inspect.isabstract(getattr(dk, name))
}


def heights(kind: str, figure: str) -> list[float]:
    return [float(height) for height in re.findall(rf'class="{kind}"[^>]* height="([\d.]+)"', figure)]


def test_bars_are_as_high_as_their_probabilities_of_the_largest_one() -> None:
    figure = PICTURES.picture("dk.TopK(1)", "page.md")
    assert heights("before", figure) == [28, 20, 14, 10, 8, 6, 5, 4, 2.5, 1.5, 0.7, 0.3]
    assert heights("after", figure) == [100]
    assert figure.count('class="banned"') == 11
    # 0.28 is the largest: of what is left when token 0 is banned, token 1 has 0.20 / 0.72.
    figure = PICTURES.picture("dk.SuppressTokens(0)", "page.md")
    assert heights("before", figure)[:3] == [100, 71.4, 50]
    assert heights("after", figure)[:3] == [99.2, 69.4, 49.6]


def test_the_drawing_says_in_words_what_is_banned() -> None:
    figure = PICTURES.picture("dk.SuppressTokens([0, 3])", "page.md")
    assert "banned: 0, 3" in figure
    assert "token 0: 28.0% → banned" in figure
    assert "banned: none" in PICTURES.picture("dk.Temperature(2)", "page.md")


@pytest.mark.parametrize(("least", "at", "banned"), [(3, None, 1), (2, None, 0), (1, "prompt", 1)])
def test_two_tokens_were_said_after_the_prompt_or_none(least: int, at: str | None, banned: int) -> None:
    after = PICTURES.probabilities(f"dk.MinNewTokens({least}, end_ids=0)", at)
    assert banned == after.count(-1.0)


def test_at_the_start_the_text_is_one_token_long() -> None:
    assert PICTURES.probabilities("dk.ForcedBOS(4)", "start")[4] == 1
    assert PICTURES.probabilities("dk.ForcedBOS(4)", "prompt")[4] < 1


def test_the_text_so_far_is_what_the_page_says() -> None:
    assert "`0 2 5`, and the tokens `2 0` have been emitted" in PAGE.replace("\n", " ")
    assert PICTURES.probabilities("dk.NoRepeatNGram(2)").index(-1.0) == 2  # 0 2 5 2 0: after 0 came 2
    assert [token for token, p in enumerate(PICTURES.probabilities("dk.NoRepeatNGram(1)")) if p < 0] == [
        0,
        2,
        5,
    ]


def test_a_picture_stands_under_the_first_sentence_of_its_class() -> None:
    entry = '<div class="doc doc-object doc-class"><p class="bases">B</p><p>First.</p><p>Then.</p></div>'
    line = "<!-- picture: dk.TopK(5) | prompt -->"
    content = PICTURES.on_page_content(
        entry + line + entry, page=SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    )
    figure = PICTURES.picture("dk.TopK(5)", "a.md", "prompt")
    assert entry.replace("First.</p>", f"First.</p>{figure}") + entry == content
    assert "<code>dk.TopK(5)</code>, the first new token" in figure


def test_a_picture_loads_nothing_and_runs_nothing() -> None:
    figure = PICTURES.picture("dk.TopK(5)", "page.md")
    assert not re.search(r"http|url\(|href|<script|<style", figure)


@pytest.mark.parametrize(
    "expression", ["dk.TopP(2)", "dk.Nothing()", "1 +", "toy", "dk.SuppressTokens(range(12))"]
)
def test_an_expression_that_fails_stops_the_build_and_is_named(expression: str) -> None:
    content, page = f"<!-- picture: {expression} -->", SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    with pytest.raises(PluginError, match=rf"^a\.md: the picture of {re.escape(expression)} fails: "):
        PICTURES.on_page_content(content, page=page)


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_processor_on_its_page_has_a_picture(name: str) -> None:
    line = PICTURES.LINE.search(PROCESSORS[name])
    assert line is not None
    assert re.search(rf"dk\.{name}\b", line["expression"])
    after = PICTURES.probabilities(line["expression"], line["at"])
    assert (
        max(abs(new - old) for new, old in zip(after, PICTURES.BEFORE, strict=True)) > 0.01
    )  # it can be seen
