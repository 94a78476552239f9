"""A batch in which every prompt has its own number, next to each prompt alone with that number."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

import decodekit as dk
from tests.processors.parity import LAWS

Values = Sequence[Any]
Make = Callable[[Any], dk.LogitsProcessor]

FEW = settings(LAWS, max_examples=25)  # each is a run of every prompt alone
STEPS = 4
ROWS = 2  # of each prompt


@st.composite
def batches(draw: st.DrawFn, value: st.SearchStrategy[Any], vocab: int = 7) -> tuple[list[list[int]], Values]:
    """Prompts of different lengths, and a number for each."""
    token = st.integers(0, vocab - 1)
    batch = draw(st.lists(st.lists(token, min_size=1, max_size=5), min_size=1, max_size=4))
    return batch, draw(st.lists(value, min_size=len(batch), max_size=len(batch)))


def assert_each_has_its_own(
    make: Make, batch: list[list[int]], values: Values, seed: int, vocab: int = 7
) -> None:
    """Each row of the batch gets what it gets alone, at every step, with its prompt's number by itself."""
    generator = torch.Generator().manual_seed(seed)
    said = torch.randint(0, vocab, (STEPS, ROWS * len(batch)), generator=generator)
    scores = torch.randn(STEPS, ROWS * len(batch), vocab, generator=generator).mul(2).round()
    together = run(make(list(values)), batch, said, scores, ROWS)
    for row, got in enumerate(together.unbind(1)):
        prompt, here = row // ROWS, slice(row, row + 1)
        alone = run(make(values[prompt]), [batch[prompt]], said[:, here], scores[:, here], 1)
        assert alone[:, 0].tolist() == got.tolist()


def run(
    processor: dk.LogitsProcessor, batch: list[list[int]], said: Tensor, scores: Tensor, rows: int
) -> Tensor:
    """The processed scores of every step of a run that says `said`."""
    history = dk.Prompt.from_ids(batch).history(max(map(len, batch)) + STEPS, rows)
    memory, out = processor.init(history), []
    for tokens, given in zip(said, scores, strict=True):
        processed, memory = processor.apply(history, given, memory)
        out.append(processed)
        history = history.append(tokens)
    return torch.stack(out)
