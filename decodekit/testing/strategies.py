"""Random histories, scores and batches of prompts, for hypothesis."""

import torch
from hypothesis import strategies as st
from jaxtyping import Float32
from torch import Tensor

from decodekit.core.history import History


@st.composite
def prompts(draw: st.DrawFn, vocab: int, max_batch: int = 3, max_length: int = 5) -> list[list[int]]:
    """Prompts of different lengths, as lists of ids."""
    token = st.integers(0, vocab - 1)
    return draw(st.lists(st.lists(token, min_size=1, max_size=max_length), min_size=1, max_size=max_batch))


@st.composite
def cases(
    draw: st.DrawFn, vocab: int, *, padded: bool = True, ties: bool = True
) -> tuple[History, Float32[Tensor, "rows vocab"]]:
    """A history with random ids in its unwritten columns, and scores, some of them minus infinity.

    At least one token of every row is allowed.
    """
    rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    capacity = length + draw(st.integers(0, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    valid = torch.arange(capacity).expand(rows, -1) < length
    scores = torch.randn(rows, vocab, generator=generator) * draw(st.sampled_from([0.1, 1.0, 10.0]))
    if ties and draw(st.booleans()):
        scores = scores.round()
    for row in range(rows):
        padding = draw(st.integers(0, length - 1)) if padded else 0
        valid = valid & ~((torch.arange(rows)[:, None] == row) & (torch.arange(capacity) < padding))
        banned = draw(st.sets(st.integers(0, vocab - 1), max_size=vocab - 1))
        scores[row, list(banned)] = -torch.inf
    tokens = torch.randint(0, vocab, (rows, capacity), generator=generator)
    return History(tokens, valid, torch.tensor(length)), scores
