"""The laws of processors."""

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
from decodekit.processors.base import LogitsProcessor, Scores
from decodekit.testing.capture_laws import check_captures, tensors
from decodekit.testing.checking import check, name_of, repeatable
from decodekit.testing.strategies import cases, prompts
from decodekit.testing.toy_models import HashModel


def check_processor(
    processor: LogitsProcessor | Callable[[list[int]], LogitsProcessor],
    *,
    vocab: int = 9,
    unbans: bool = False,
    max_examples: int = 60,
) -> None:
    """Check the contract of a processor, on random histories and scores.

    It is pure. It treats every row on its own, and its memory follows the row when rows are reordered or
    prompts are evicted. It ignores padding, unwritten columns and the capacity. It allows no banned token,
    unless `unbans`, and returns no NaN. A declared `argmax_invariant` or `capturable` is true.

    Args:
        processor: The processor; or, for parameters per prompt, a function from the indices of the batch's
            prompts to a processor.
        vocab: Number of tokens, above every id that the processor holds.
        unbans: True for processors that are meant to allow banned tokens.
        max_examples: Number of random cases per law.

    Raises:
        AssertionError: If a law does not hold; the message has the law and the case.

    Example:
        >>> check_processor(dk.TopP(0.9), max_examples=5)
    """

    def make(numbers: Sequence[int]) -> LogitsProcessor:
        return processor if isinstance(processor, LogitsProcessor) else processor(list(numbers))

    @repeatable(max_examples)
    @given(cases(vocab))
    def one_step(case: tuple[History, Scores]) -> None:
        history, scores = case
        _check_step(make(range(len(scores))), history, scores, unbans=unbans)

    @repeatable(max_examples)
    @given(prompts(vocab), st.integers(0, 2**31))
    def many_steps(batch: list[list[int]], seed: int) -> None:
        for tokens, number, actual in _run_reordered(make(range(len(batch))), batch, vocab, seed):
            single = make([number])
            expected = _run_alone(single, tokens, len(batch[number]), vocab, seed)
            who = f"check_processor: {name_of(single)}"
            law = f"{who} must give each row the scores it gets alone: memory follows its row"
            check(torch.equal(expected, actual), law, row=tokens, in_the_batch=actual, alone=expected)

    one_step()
    many_steps()
    whole = make(range(3))
    if whole.capturable:
        check_captures(processor=whole, vocab=vocab, batch=3)


def _check_step(processor: LogitsProcessor, history: History, scores: Scores, *, unbans: bool) -> None:
    who, before = f"check_processor: {name_of(processor)}", scores.clone()
    arguments = {"tokens": history.tokens, "valid": history.valid, "scores": scores}
    copies = {name: value.clone() for name, value in arguments.items()}
    memory = processor.init(history)
    old = [tensor.clone() for tensor in tensors(memory)]
    out, _ = processor.apply(history, scores, memory)
    check(all(map(torch.equal, old, tensors(memory))), f"{who} must not write to its memory")
    for name, value in arguments.items():
        same = torch.equal(copies[name], value)
        check(same, f"{who} must not write to {name}", before=copies[name], after=value)
    check(out.shape == scores.shape, f"{who} must keep the shape of the scores", got=tuple(out.shape))
    check(not out.isnan().any(), f"{who} must not make NaN", got=out)
    allowed = (before == -torch.inf) & (out != -torch.inf)
    check(unbans or not allowed.any(), f"{who} must not allow banned tokens", got=out)
    if processor.argmax_invariant:
        top = before == before.amax(-1, keepdim=True)
        kept = top.gather(1, out.argmax(-1, keepdim=True))
        check(kept.all(), f"{who} declares argmax_invariant and must keep the argmax", got=out)
    invalid = torch.arange(history.tokens.numel()).view_as(history.tokens) % scores.shape[-1]
    longer = torch.cat([history.tokens, invalid[:, :1].expand(-1, 3)], 1)
    others = {
        "columns that are not valid": (torch.where(history.valid, history.tokens, invalid), history.valid),
        "the capacity": (longer, torch.nn.functional.pad(history.valid, (0, 3))),
    }
    for name, (tokens, valid) in others.items():
        other = replace(history, tokens=tokens, valid=valid)
        again, _ = processor.apply(other, scores, processor.init(other))
        check(torch.equal(out, again), f"{who} must ignore {name}", got=out, with_others=again)


def _run_reordered(
    processor: LogitsProcessor, batch: list[list[int]], vocab: int, seed: int, steps: int = 4
) -> list[tuple[list[int], int, Float32[Tensor, " vocab"]]]:
    """Decode at random with two rows per prompt, reorder rows inside their prompts, and evict some prompts.

    Returns:
        For every remaining row its tokens, the index of its prompt, and its last processed scores.
    """
    generator = torch.Generator().manual_seed(seed)
    prompt = Prompt.from_ids(batch)
    numbers = list(range(len(batch)))
    history = prompt.history(prompt.tokens.shape[1] + steps, 2)
    session, logits = HashModel(vocab, seed).start(prompt, rows_per_prompt=2, capacity=0)
    memory, scores = processor.init(history), logits
    for number in range(steps):
        rows = 2 * len(numbers)
        scores, memory = processor.apply(history, logits, memory)
        leads = all(tensor.ndim == 0 or len(tensor) == rows for tensor in tensors(memory))
        law = f"check_processor: {name_of(processor)} must remember tensors that lead with rows, or are 0-d"
        check(leads, law, rows=rows, shapes=[tuple(tensor.shape) for tensor in tensors(memory)])
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
    pairs = zip(history.tokens, history.valid, strict=True)
    return [(ids[valid].tolist(), numbers[row // 2], scores[row]) for row, (ids, valid) in enumerate(pairs)]


def _run_alone(
    processor: LogitsProcessor, tokens: list[int], prompt_length: int, vocab: int, seed: int
) -> Float32[Tensor, " vocab"]:
    """The processed scores after `tokens`, for one row that was never reordered."""
    prompt = Prompt.from_ids([tokens[:prompt_length]])
    history = prompt.history(len(tokens) + 1, 1)
    session, logits = HashModel(vocab, seed).start(prompt, rows_per_prompt=1, capacity=0)
    scores, memory = processor.apply(history, logits, processor.init(history))
    for token in tokens[prompt_length:]:
        history = history.append(torch.tensor([token]))
        logits = session.advance(torch.tensor([token]), None)
        scores, memory = processor.apply(history, logits, memory)
    return scores[0]
