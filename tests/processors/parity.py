"""Arguments of processors in Hugging Face's calling convention: ids without padding, and scores."""

from collections.abc import Callable

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

import decodekit as dk

LAWS = settings(max_examples=150, deadline=None, derandomize=True, database=None)

Call = tuple[Tensor, Tensor]  # input_ids[rows length] and scores[rows vocab]


@st.composite
def calls(draw: st.DrawFn, *, outside: int = 0) -> Call:
    """One row or several, vocabularies of 2 to 9, scores with and without ties and infinities.

    Args:
        draw: Given by hypothesis.
        outside: How many ids beyond the vocabulary the text may hold.
    """
    rows, length, vocab = draw(st.integers(1, 5)), draw(st.integers(1, 9)), draw(st.integers(2, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tokens = torch.randint(0, vocab + outside, (rows, length), generator=generator)
    scores = torch.randn(rows, vocab, generator=generator)
    # Unlike any other, some tied, many tied, all tied.
    scores = draw(st.sampled_from([scores, (2 * scores).round(), scores.sign(), torch.zeros_like(scores)]))
    scores = scores * draw(st.sampled_from([0.1, 1.0, 10.0]))
    for row in range(rows):
        for infinity in (-torch.inf, torch.inf) if draw(st.booleans()) else ():
            scores[row, list(draw(st.sets(st.integers(0, vocab - 1), max_size=vocab - 1)))] = infinity
    return tokens, scores


def assert_same(expected: Callable[..., Tensor], actual: Callable[..., Tensor], call: Call) -> None:
    """Both give the same numbers, bit for bit, and neither writes to its arguments."""
    tokens, scores = call
    before = tokens.clone(), scores.clone()
    theirs, ours = expected(tokens.clone(), scores.clone()), actual(tokens, scores)
    assert theirs.tolist() == ours.tolist()
    assert torch.equal(before[0], tokens)
    assert torch.equal(before[1], scores)


def history_of(text: list[list[int]], room: int = 4, rows_per_prompt: int = 1) -> dk.History:
    """The history of prompts of any lengths at the beginning of a run, with room for new tokens."""
    return dk.Prompt.from_ids(text).history(max(map(len, text)) + room, rows_per_prompt)


def step_scores(
    processor: dk.LogitsProcessor, history: dk.History, scores: Tensor, tokens: list[list[int]]
) -> list[list[list[float]]]:
    """The processed scores, from the same ones, before every step and after the last."""
    memory, out = processor.init(history), []
    for emitted in [*tokens, None]:
        processed, memory = processor.apply(history, scores, memory)
        out.append(processed.tolist())
        history = history if emitted is None else history.append(torch.tensor(emitted))
    return out


def assert_same_at_every_step(
    expected: Callable[..., Tensor], actual: dk.LogitsProcessor, call: Call, seed: int, steps: int = 7
) -> None:
    """Both give the same numbers, bit for bit, after random tokens, and do not write to the scores."""
    tokens, scores = call
    rows, vocab = scores.shape
    emitted = torch.randint(0, vocab, (steps, rows), generator=torch.Generator().manual_seed(seed))
    before = scores.clone()
    theirs = [
        expected(torch.cat([tokens, emitted[:step].T], 1), scores.clone()).tolist()
        for step in range(steps + 1)
    ]
    assert theirs == step_scores(actual, history_of(tokens.tolist(), steps), scores, emitted.tolist())
    assert torch.equal(before, scores)
