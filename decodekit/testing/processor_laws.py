"""What must hold for every processor."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.prompt import Prompt
from decodekit.core.pytrees import can_be_split, keep_prompts, reorder_memory, whole_part
from decodekit.processors.base import LogitsProcessor
from decodekit.testing.capture_laws import check_captures, tensors
from decodekit.testing.checking import check, repeatable
from decodekit.testing.strategies import cases, prompts
from decodekit.testing.toy_models import HashModel


def check_processor(
    processor: LogitsProcessor | Callable[[list[int]], LogitsProcessor],
    *,
    vocab: int = 9,
    unbans: bool = False,
    max_examples: int = 60,
) -> None:
    """Raises unless a processor keeps its contract, on random histories and scores.

    It must be pure; treat every row by itself, with memory that follows its row when rows are reordered, also
    when prompts leave if it says that they may (`batch_independent`); ignore padding, unwritten columns and
    capacity; not turn minus infinity into anything else, and not make NaN; keep the argmax if it says so; be
    capturable if it says so.

    Args:
        processor: What to check, or a function from the numbers of the prompts in a batch to a processor
            for them, where it has parameters for each prompt.
        vocab: Number of tokens, above every id that the processor holds.
        unbans: True for processors that are meant to bring banned tokens back.
        max_examples: Random cases a law.

    Raises:
        AssertionError: If a law does not hold; hypothesis says for which case.

    Example:
        >>> check_processor(dk.TopP(0.9), max_examples=5)
    """

    def make(numbers: Sequence[int]) -> LogitsProcessor:
        return processor if isinstance(processor, LogitsProcessor) else processor(list(numbers))

    @repeatable(max_examples)
    @given(cases(vocab))
    def one_step(case: tuple[History, Float32[Tensor, "rows vocab"]]) -> None:
        history, scores = case
        _check_step(make(range(len(scores))), history, scores, vocab, unbans=unbans)

    @repeatable(max_examples)
    @given(prompts(vocab), st.integers(0, 2**31))
    def many_steps(batch: list[list[int]], seed: int) -> None:
        run = _run_reordered(make(range(len(batch))), batch, vocab, seed)
        for text, number, got in run:
            processor = make([number])
            expected = _run_alone(processor, text, len(batch[number]), vocab, seed)
            check(
                torch.equal(expected, got),
                f"{processor!r} must give row {text} what it gives it alone: memory follows its row",
            )

    one_step()
    many_steps()
    whole = make(range(3))
    if whole.capturable:
        check_captures(processor=whole, vocab=vocab, batch=3)


def _check_step(
    processor: LogitsProcessor,
    history: History,
    scores: Float32[Tensor, "rows vocab"],
    vocab: int,
    *,
    unbans: bool,
) -> None:
    before = (history.tokens.clone(), history.valid.clone(), scores.clone())
    memory = processor.init(history)
    remembered = [tensor.clone() for tensor in tensors(memory)]
    out, _ = processor.apply(history, scores, memory)
    check(all(map(torch.equal, remembered, tensors(memory))), f"{processor!r} must not write to its memory")
    for name, old, new in zip(
        ("tokens", "valid", "scores"), before, (history.tokens, history.valid, scores), strict=True
    ):
        check(torch.equal(old, new), f"{processor!r} must not write to {name}")
    check(out.shape == scores.shape, f"{processor!r} must keep the shape of the scores")
    check(not out.isnan().any(), f"{processor!r} must not make NaN")
    check(
        unbans or not ((scores == -torch.inf) & (out != -torch.inf)).any(),
        f"{processor!r} must not allow what was banned",
    )
    if processor.argmax_invariant:
        top = scores == scores.amax(-1, keepdim=True)
        check(
            top.gather(1, out.argmax(-1, keepdim=True)).all(),
            f"{processor!r} says it keeps the argmax",
        )
    for what, same in _same_text(history, vocab).items():
        again, _ = processor.apply(same, scores, processor.init(same))
        check(torch.equal(out, again), f"{processor!r} must ignore {what}")


def _same_text(history: History, vocab: int) -> dict[str, History]:
    """The same text with other junk around it."""
    junk = torch.arange(history.tokens.numel()).view_as(history.tokens) % vocab
    rows = len(history.tokens)
    return {
        "columns that are not valid": replace(
            history, tokens=torch.where(history.valid, history.tokens, junk)
        ),
        "the capacity": History(
            torch.cat([history.tokens, junk[:, :1].expand(rows, 3)], 1),
            torch.cat([history.valid, torch.zeros(rows, 3, dtype=torch.bool)], 1),
            history.position,
        ),
    }


def _run_reordered(
    processor: LogitsProcessor, batch: list[list[int]], vocab: int, seed: int, steps: int = 4
) -> list[tuple[list[int], int, Float32[Tensor, " vocab"]]]:
    """Random tokens on two rows a prompt, reordered at random inside their prompts, some of which leave.

    Returns:
        For every row that stays its text, the number of its prompt, and the last step's processed scores.
    """
    generator = torch.Generator().manual_seed(seed)
    prompt = Prompt.from_ids(batch)
    numbers = list(range(len(batch)))
    history = prompt.history(prompt.tokens.shape[1] + steps, 2)
    session, logits = HashModel(vocab, seed).start(prompt, rows_per_prompt=2, capacity=0)
    memory = processor.init(history)
    scores = logits
    for number in range(steps):
        rows = 2 * len(numbers)
        scores, memory = processor.apply(history, logits, memory)
        check(
            all(tensor.ndim == 0 or len(tensor) == rows for tensor in tensors(memory)),
            f"{processor!r} must remember tensors that lead with rows, or are 0-d",
        )
        if number + 1 < steps:
            first = torch.arange(rows) // 2 * 2
            sources = first + torch.randint(0, 2, (rows,), generator=generator)
            tokens = torch.randint(0, vocab, (rows,), generator=generator)
            memory = reorder_memory(memory, sources)
            history = history.take(sources).append(tokens)
            logits = session.advance(tokens, sources)
        if number == 1 and whole_part(processor) is None and can_be_split(memory):
            stay = torch.randperm(len(numbers), generator=generator)[: 1 + seed % len(numbers)].sort().values
            history, memory = keep_prompts((history, memory), stay, len(numbers))
            session.keep_prompts(stay)
            numbers, logits = stay.tolist(), session.logits()
    texts = [tokens[valid].tolist() for tokens, valid in zip(history.tokens, history.valid, strict=True)]
    return [(text, numbers[row // 2], scores[row]) for row, text in enumerate(texts)]


def _run_alone(
    processor: LogitsProcessor, text: list[int], prompt_length: int, vocab: int, seed: int
) -> Float32[Tensor, " vocab"]:
    """The processed scores after `text`, for one row that was never reordered."""
    prompt = Prompt.from_ids([text[:prompt_length]])
    history = prompt.history(len(text) + 1, 1)
    session, logits = HashModel(vocab, seed).start(prompt, rows_per_prompt=1, capacity=0)
    scores, memory = processor.apply(history, logits, processor.init(history))
    for token in text[prompt_length:]:
        history = history.append(torch.tensor([token]))
        logits = session.advance(torch.tensor([token]), None)
        scores, memory = processor.apply(history, logits, memory)
    return scores[0]
