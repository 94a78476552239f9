"""Numerical tests of a transformers model at hand.

Some families keep state outside their cache, or read padding as text, and say nothing about it. So a
model is asked: two short texts are run both ways, and the logits are compared.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.model import Session
from decodekit.prompt import Prompt

# Rounding, even in bfloat16, stays well below a tenth of what another text changes; a wrong cache
# row makes the whole difference.
_TOLERANCE = 0.1

# The positions that the probes need.
LONGEST = 5


@runtime_checkable
class WideningSession(Session, Protocol):
    """A session that starts with one row a prompt."""

    def widen(self, rows_per_prompt: int) -> Int64[Tensor, " rows"]:
        """Makes `rows_per_prompt` rows of every prompt; returns the prompt of each row."""


# Runs the model over prompts, with room for so many columns.
Open = Callable[[Prompt, int], tuple[WideningSession, Float32[Tensor, "rows vocab"]]]


# The logits after every token of a text, in one pass without a cache.
Read = Callable[[list[int]], Float32[Tensor, "length vocab"]]


def continues(run: Open, read: Read, vocab: int) -> bool:
    """Whether a text can be continued token by token.

    The logits after a token must not depend on what comes later (an encoder's do), and must be the
    same when the tokens before it are in the cache.
    """
    first, second, last = _texts(vocab)
    whole, other = read([*first, last, last]), read([*second, last, last])
    session, logits = run(Prompt.from_ids([first]), LONGEST)
    same = _same(logits, whole[1:2], signal=whole[1] - other[1])
    for position in (2, 3):
        logits = session.advance(torch.full((1,), last, device=logits.device), None)
        same = same and _same(
            logits, whole[position : position + 1], signal=whole[position] - other[position]
        )
    return same


def follows_rows(run: Open, read: Read, vocab: int) -> bool:
    """Whether the cache can be widened and reordered: then each row goes on from its own text."""
    first, second, last = _texts(vocab)
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
    return _same(got, torch.stack(expected), signal=signal)


def ignores_padding(run: Open, read: Read, vocab: int) -> bool:
    """Whether a text gives the same logits with padding to its left, now and one token later."""
    first, second, last = _texts(vocab)
    session, logits = run(Prompt.from_ids([first, [*second, last, last]]), 5)
    got = session.advance(torch.full((2,), last, device=logits.device), None)[:1]
    one, other = (read([*text, last])[-1] for text in (first, second))
    return _same(got, one[None], signal=one - other)


def _texts(vocab: int) -> tuple[list[int], list[int], int]:
    """Two texts that differ in their first token only, and a token to go on with.

    What their logits differ by is what context makes, and nothing else.
    """
    return [1 % vocab, 2 % vocab], [0, 2 % vocab], 3 % vocab


def _same(
    got: Float32[Tensor, "rows vocab"],
    expected: Float32[Tensor, "rows vocab"],
    *,
    signal: Float32[Tensor, "*vocab"],
) -> bool:
    """Whether the logits agree far better than those of two different texts do."""
    if not (got.isfinite().all() and expected.isfinite().all() and signal.any()):
        return True  # nothing to compare; the run itself says what is wrong with the logits
    return bool((got - expected).abs().max() <= _TOLERANCE * signal.abs().max())
