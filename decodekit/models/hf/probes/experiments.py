"""Numerical tests of a transformers model at hand.

Some families keep state outside their cache, or read padding as text, and say nothing about it. So a
model is asked: two short texts are run both ways, and the logits are compared.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.history import Source
from decodekit.core.prompt import Prompt
from decodekit.models.protocols import MergeableSession, Session

# Rounding stays well below this share of what another text changes; a wrong cache row makes the whole
# difference, and a wrong position a good part of it.
_TOLERANCE = 0.01
_HALF_PRECISION_TOLERANCE = 0.1

# The positions that the probes need.
LONGEST = 5


@runtime_checkable
class WideningSession(Session, Protocol):
    """A session that starts with one row a prompt."""

    def widen(self, rows_per_prompt: int) -> Int64[Tensor, " rows"]:
        """Makes `rows_per_prompt` rows of every prompt; returns the prompt of each row."""


# Runs the model over prompts, with room for so many columns.
Open = Callable[[Prompt, int], tuple[WideningSession, Float32[Tensor, "rows vocab"]]]


# The same, with so many rows for each.
OpenRows = Callable[[Prompt, int, int], tuple[Session, Float32[Tensor, "rows vocab"]]]


# The logits after every token of a text, in one pass without a cache.
Read = Callable[[list[int]], Float32[Tensor, "length vocab"]]


# The same for an encoder-decoder that has read a source.
ReadAfter = Callable[[list[int], list[int]], Float32[Tensor, "length vocab"]]


# A run of one text with two rows, after a source if the model reads any.
Begin = Callable[[list[int], list[int]], tuple[MergeableSession, Float32[Tensor, "rows vocab"]]]


class Texts(NamedTuple):
    """What the probes make a model read.

    Attributes:
        first: A text.
        second: One that differs from it in its first token only: what their logits differ by is what
            context makes, and nothing else.
        last: A token to go on with.
        tolerance: The share of that difference that rounding may make.
    """

    first: list[int]
    second: list[int]
    last: int
    tolerance: float

    @classmethod
    def of(cls, vocab: int, pad_id: int | None, dtype: torch.dtype) -> "Texts":
        """Of the first ids that are not the pad id, by which some families count positions."""
        ids = ([token for token in range(min(vocab, 5)) if token != pad_id] or [0]) * 4
        half = torch.finfo(dtype).bits < torch.finfo(torch.float32).bits
        tolerance = _HALF_PRECISION_TOLERANCE if half else _TOLERANCE
        return cls([ids[1], ids[2]], [ids[0], ids[2]], ids[3], tolerance)

    def agree(
        self,
        got: Float32[Tensor, "rows vocab"],
        expected: Float32[Tensor, "rows vocab"],
        *,
        signal: Float32[Tensor, "*vocab"],
    ) -> bool:
        """Whether the logits agree far better than those of two different texts do."""
        if not (got.isfinite().all() and expected.isfinite().all() and signal.any()):
            return True  # nothing to compare; the run itself says what is wrong with the logits
        return bool((got - expected).abs().max() <= self.tolerance * signal.abs().max())


def continues(run: Open, read: Read, texts: Texts) -> bool:
    """Whether a text can be continued token by token.

    The logits after a token must not depend on what comes later (an encoder's do), and must be the
    same when the tokens before it are in the cache.
    """
    first, second, last, _ = texts
    whole, other = read([*first, last, last]), read([*second, last, last])
    session, logits = run(Prompt.from_ids([first]), LONGEST)
    same = texts.agree(logits, whole[1:2], signal=whole[1] - other[1])
    for position in (2, 3):
        logits = session.advance(torch.full((1,), last, device=logits.device), None)
        same = same and texts.agree(
            logits, whole[position : position + 1], signal=whole[position] - other[position]
        )
    return same


def follows_rows(run: Open, read: Read, texts: Texts) -> bool:
    """Whether the cache can be widened and reordered: then each row goes on from its own text."""
    first, second, last, _ = texts
    said, sources = [first[0], second[0], first[0], second[0]], [1, 0, 3, 3]
    try:
        session, logits = run(Prompt.from_ids([first, second]), 4)
        session.widen(2)
        session.advance(torch.tensor(said, device=logits.device), None)
        got = session.advance(
            torch.full((4,), last, device=logits.device), torch.tensor(sources, device=logits.device)
        )
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False  # what transformers raises where a cache has no rows to reorder
    expected = [
        read([*(first, second)[row // 2], said[source], last])[-1] for row, source in enumerate(sources)
    ]
    # Rows 0 and 1 differ by what they said, rows 0 and 2 by their prompts.
    signal = torch.minimum(*((expected[0] - expected[row]).abs().max() for row in (1, 2)))
    return texts.agree(got, torch.stack(expected), signal=signal)


def branches(run: OpenRows, read: Read, texts: Texts) -> bool:
    """Whether rows of a prompt that share their cache go on each from its own text, wherever they move."""
    first, second, last, _ = texts
    steps = [
        ([first[0], second[0], first[1]] * 2, None),
        ([second[0], first[0], first[0]] * 2, [1, 0, 1, 5, 5, 3]),
        ([last] * 6, [2, 2, 0, 3, 5, 4]),
    ]
    session, logits = run(Prompt.from_ids([first, second]), 3, LONGEST)
    said: list[list[int]] = [[*first]] * 3 + [[*second]] * 3
    same = True
    for tokens, sources in steps:
        rows = None if sources is None else torch.tensor(sources, device=logits.device)
        logits = session.advance(torch.tensor(tokens, device=logits.device), rows)
        said = [[*said[sources[row] if sources else row], token] for row, token in enumerate(tokens)]
        expected = torch.stack([read(text)[-1] for text in said])
        # Rows of one prompt differ by what they said, rows 0 and 3 by their prompts.
        signal = torch.minimum(
            (expected[:3] - expected[:3].mean(0)).abs().max(), (expected[0] - expected[3]).abs().max()
        )
        same = same and texts.agree(logits, expected, signal=signal)
    return same


def joins(begin: Begin, read: ReadAfter, texts: Texts) -> bool:
    """Whether runs can be joined: then each goes on from its own text, shorter or longer than the others."""
    first, second, last, _ = texts
    longer, sources = [*second, last], [first, [*second, last, last], second]
    session, logits = begin(first, sources[0])
    session.merge(begin(longer, sources[1])[0])
    device = logits.device
    tokens = torch.tensor([first[0], second[0], last, first[0]], device=device)
    got = [session.advance(tokens, None)]
    session.merge(begin(second, sources[2])[0])
    moves = [1, 1, 3, 2, 4, 4]
    rows = torch.tensor(moves, device=device)
    got.append(session.advance(torch.full((6,), last, device=device), rows))
    said = [[*first, first[0]], [*first, second[0]], [*longer, last], [*longer, first[0]], second, second]
    expected = [
        torch.stack([read(text, sources[row // 2])[-1] for row, text in enumerate(several)])
        for several in (said[:4], [[*said[row], last] for row in moves])
    ]
    # Of two texts that differ in their first token only, and are as long as the longest.
    one, other = (read([*text, last, first[0], last], sources[0]) for text in (first, second))
    signal = (one - other)[2:].abs().amax(-1).min()
    return all(texts.agree(logits, alone, signal=signal) for logits, alone in zip(got, expected, strict=True))


def ignores_padding(run: Open, read: Read, texts: Texts) -> bool:
    """Whether a text gives the same logits with padding to its left, now and one token later."""
    first, second, last, _ = texts
    session, logits = run(Prompt.from_ids([first, [*second, last, last]]), 5)
    got = session.advance(torch.full((2,), last, device=logits.device), None)[:1]
    one, other = (read([*text, last])[-1] for text in (first, second))
    return texts.agree(got, one[None], signal=one - other)


def shares_source(run: Open, read: ReadAfter, texts: Texts) -> bool:
    """Whether rows can look at what was read once a prompt: then each still reads its own source."""
    first, second, last, _ = texts
    sources, said = [first, [*second, last]], [first[0], second[0], first[0], second[0]]
    try:
        session, logits = run(after(sources, Prompt.from_ids([first, first])), LONGEST)
        session.widen(2)
        got = session.advance(torch.tensor(said, device=logits.device), None)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False  # what a family raises whose attention is built otherwise
    expected = [read([*first, token], sources[row // 2])[-1] for row, token in enumerate(said)]
    signal = torch.minimum(*((expected[0] - expected[row]).abs().max() for row in (1, 2)))
    return texts.agree(got, torch.stack(expected), signal=signal)


def ignores_source_padding(run: Open, read: ReadAfter, texts: Texts) -> bool:
    """Whether a source gives the same logits with padding to its right."""
    first, second, last, _ = texts
    sources = [first, [*second, last, last]]
    _, got = run(after(sources, Prompt.from_ids([first, first])), LONGEST)
    one, other = (read(first, source)[-1] for source in sources)
    return texts.agree(got[:1], one[None], signal=one - other)


def after(sources: list[list[int]], prompt: Prompt) -> Prompt:
    """The prompts of a decoder whose encoder reads the sources."""
    length = max(len(source) for source in sources)
    tokens = torch.tensor([[*source, *[0] * (length - len(source))] for source in sources])
    lengths = torch.tensor([len(source) for source in sources])
    return prompt.with_source(Source(tokens, torch.arange(length) < lengths[:, None]))
