# ruff: noqa: INP001 - loaded by its path, not imported
"""Pictures of the effect of a processor on a distribution, computed by the processor itself.

A line `<!-- picture: EXPRESSION -->` after the `:::` entry of a class becomes a picture under the first
sentence of the class. The expression creates a processor from `dk`, `torch`, the toy models `toy` and `other`
of 12 tokens, and their tokenizer `letters`. The picture shows the third new token. With ` | prompt` at the
end of the expression it shows the first new token, and with ` | start` the first one after a single token.
"""

import html
import re
from dataclasses import replace
from typing import Any

import torch
from mkdocs.exceptions import PluginError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import decodekit as dk
from decodekit.core.history import Source
from decodekit.testing import HashModel

BEFORE = (0.28, 0.20, 0.14, 0.10, 0.08, 0.06, 0.05, 0.04, 0.025, 0.015, 0.007, 0.003)
PROMPT, SAID = [0, 2, 5], (2, 0)
SOURCE = [0, 3, 1, 4]  # the ids that an encoder has read, for processors that use them

LINE = re.compile(r"<!-- picture: (?P<expression>.+?)(?: \| (?P<at>prompt|start))? -->")
_WHEN = {None: "", "prompt": ", the first new token", "start": ", the second token of all"}
_CLASS = '<div class="doc doc-object doc-class">'
_SENTENCE = re.compile(r"<p>.*?</p>", re.DOTALL)

# In units of the drawing: pixels, unless the page is narrower than the picture.
_SLOT, _BAR, _FOOT, _HEIGHT = 35, 13, 108, 100


def on_page_content(content: str, page: Any, **_: Any) -> str:  # noqa: ANN401 - the signature of mkdocs
    """Replace every line by its picture, under the first sentence of the class before it."""
    while line := LINE.search(content):
        figure = picture(line["expression"], page.file.src_uri, line["at"])
        above, below = content[: line.start()], content[line.end() :]
        begin = max(above.rfind(_CLASS), 0)
        sentence = _SENTENCE.search(above, begin)
        place = sentence.end() if sentence else len(above)
        content = above[:place] + figure + above[place:] + below
    return content


def picture(expression: str, page: str, at: str | None = None) -> str:
    """The picture of one processor, with its expression as caption.

    Args:
        expression: Python expression that creates a processor.
        page: Name of the page, for the error message.
        at: "prompt" or "start": draw the first new token, after the prompt or after a single token.

    Raises:
        PluginError: If the expression fails, its value is not a processor, or no distribution is left.
    """
    try:
        after = probabilities(expression, at)
    except Exception as error:
        raise PluginError(f"{page}: the picture of {expression} fails: {error}") from error
    return (
        f'<figure class="picture" data-search-exclude>{draw(after)}'
        f"<figcaption><code>{html.escape(expression)}</code>{_WHEN[at]}</figcaption></figure>"
    )


def probabilities(expression: str, at: str | None = None) -> list[float]:
    """The probability of every token after the processor; -1 marks a banned token."""
    names = {
        "dk": dk,
        "torch": torch,
        "toy": HashModel(len(BEFORE)),
        "other": HashModel(len(BEFORE), seed=1),
        "letters": _letters(),
    }
    processor = eval(expression, names)  # noqa: S307 - the page's author wrote it
    if not isinstance(processor, dk.LogitsProcessor):
        raise TypeError(f"it must be a processor, got {processor!r:.80}.")
    scores = torch.tensor([BEFORE]).log()
    history = _history(PROMPT[:1] if at == "start" else PROMPT)
    memory = processor.init(history)
    after, memory = processor.apply(history, scores, memory)
    for token in () if at else SAID:
        history = history.append(torch.tensor([token]))
        after, memory = processor.apply(history, scores, memory)
    probs = after.softmax(-1)
    if probs.isnan().any():
        raise ValueError(f"no distribution is left, the scores are {after[0].tolist()}.")
    return torch.where(after == -torch.inf, -1.0, probs)[0].tolist()


def _letters() -> PreTrainedTokenizerFast:
    """A tokenizer of the 12 tokens: the letters a to k, and an end token."""
    tokens = Tokenizer(
        models.BPE(vocab={letter: number for number, letter in enumerate("abcdefghijk.")}, merges=[])
    )
    tokens.pre_tokenizer, tokens.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token=".")  # noqa: S106 - a token, no password


def _history(prompt: list[int]) -> dk.History:
    """A history of one row at the end of its prompt, with room for five new tokens."""
    source = Source(torch.tensor([SOURCE]), torch.ones(1, len(SOURCE), dtype=torch.bool))
    return replace(dk.Prompt.from_ids([prompt]).history(len(prompt) + 5, 1), source=source)


def draw(after: list[float]) -> str:
    """An SVG: pale bars before the processor, strong bars after it, and a cross for each banned token."""
    scale = _HEIGHT / max(*BEFORE, *after)
    bars = []
    for token, (old, new) in enumerate(zip(BEFORE, after, strict=True)):
        left = _SLOT * token + 4
        then = "banned" if new < 0 else f"{new:.1%}"
        mark = (
            f'<text x="{left + 1.5 * _BAR}" y="{_FOOT - 2}" class="banned">&times;</text>'
            if new < 0
            else _bar("after", left + _BAR, scale * new)
        )
        bars.append(
            f"<g><title>token {token}: {old:.1%} → {then}</title>{_bar('before', left, scale * old)}{mark}"
            f'<text x="{left + _BAR}" y="{_FOOT + 15}">{token}</text></g>'
        )
    banned = ", ".join(str(token) for token, new in enumerate(after) if new < 0) or "none"
    width = _SLOT * len(BEFORE)
    return (
        f'<svg viewBox="0 0 {width} {_FOOT + 20}" width="{width}" role="img" '
        f'aria-label="Probabilities of {len(BEFORE)} tokens before and after; banned: {banned}">'
        f'<path d="M0 {_FOOT}.5H{width}"/>{"".join(bars)}</svg>'
    )


def _bar(kind: str, left: float, height: float) -> str:
    return f'<rect class="{kind}" x="{left}" y="{_FOOT - height:.1f}" width="{_BAR}" height="{height:.1f}"/>'
