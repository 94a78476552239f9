# ruff: noqa: INP001 - loaded by its path, not imported
"""Formulas as MathML, which browsers render without scripts, fonts or a network."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# The output of pymdownx.arithmatex in its generic mode.
_INLINE = re.compile(r'<span class="arithmatex">\\\((.+?)\\\)</span>', re.DOTALL)
_DISPLAY = re.compile(r'<div class="arithmatex">\\\[(.+?)\\\]</div>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:  # noqa: ANN401 - the signature of mkdocs
    """Replace every formula of a page by MathML, including formulas of docstrings."""
    content = _INLINE.sub(lambda match: convert(html.unescape(match[1]), display="inline"), content)
    return _DISPLAY.sub(lambda match: convert(html.unescape(match[1]), display="block"), content)
