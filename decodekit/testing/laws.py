"""What must hold for every processor, decoder, scorer and model: run them over yours."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.decoders.base import Decoder, Limits
from decodekit.history import History
from decodekit.loop import decode, reorder_memory, step
from decodekit.models.base import Model
from decodekit.output import Decoded
from decodekit.processors.base import LogitsProcessor
from decodekit.processors.chain import Chain
from decodekit.prompt import Prompt
from decodekit.score import score
from decodekit.scorers.base import Scorer
from decodekit.testing.captures import check_captures, shapes
from decodekit.testing.strategies import cases, prompts
from decodekit.testing.toys import HashModel

END_ID = 2  # of the toy models that laws are tried on


def _settings(max_examples: int) -> settings:
    return settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


def check_processor(
    processor: LogitsProcessor, *, vocab: int = 9, unbans: bool = False, max_examples: int = 60
) -> None:
    """Raises unless a processor keeps its contract, on random histories and scores.

    It must be pure; treat every row by itself, with memory that follows its row when rows are
    reordered; ignore padding, unwritten columns and capacity; not turn minus infinity into anything
    else, and not make NaN; keep the argmax if it says so; be capturable if it says so.

    Args:
        processor: What to check.
        vocab: Number of tokens, above every id that the processor holds.
        unbans: True for processors that are meant to bring banned tokens back.
        max_examples: Random cases a law.

    Raises:
        AssertionError: If a law does not hold; hypothesis says for which case.

    Example:
        >>> check_processor(dk.TopP(0.9), max_examples=5)
    """

    @_settings(max_examples)
    @given(cases(vocab))
    def one_step(case: tuple[History, Float32[Tensor, "rows vocab"]]) -> None:
        history, scores = case
        before = (history.tokens.clone(), history.valid.clone(), scores.clone())
        out, _ = processor.apply(history, scores, processor.init(history))
        for name, old, new in zip(
            ("tokens", "valid", "scores"), before, (history.tokens, history.valid, scores), strict=True
        ):
            _check(torch.equal(old, new), f"{processor!r} must not write to {name}")
        _check(out.shape == scores.shape, f"{processor!r} must keep the shape of the scores")
        _check(not out.isnan().any(), f"{processor!r} must not make NaN")
        _check(
            unbans or not ((scores == -torch.inf) & (out != -torch.inf)).any(),
            f"{processor!r} must not allow what was banned",
        )
        if processor.argmax_invariant:
            top = scores == scores.amax(-1, keepdim=True)
            _check(
                top.gather(1, out.argmax(-1, keepdim=True)).all(),
                f"{processor!r} says it keeps the argmax",
            )
        for what, same in _same_text(history, vocab).items():
            again, _ = processor.apply(same, scores, processor.init(same))
            _check(torch.equal(out, again), f"{processor!r} must ignore {what}")

    @_settings(max_examples)
    @given(prompts(vocab), st.integers(0, 2**31))
    def many_steps(batch: list[list[int]], seed: int) -> None:
        run = _run_reordered(processor, batch, vocab, seed)
        for text, prompt_length, got in run:
            expected = _run_alone(processor, text, prompt_length, vocab, seed)
            _check(
                torch.equal(expected, got),
                f"{processor!r} must give row {text} what it gives it alone: memory follows its row",
            )

    one_step()
    many_steps()
    if processor.capturable:
        check_captures(processor=processor, vocab=max(vocab, 8))


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
    """Random tokens on two rows a prompt, reordered at random inside their prompts.

    Returns:
        For every row its text, the length of its prompt, and the last step's processed scores.
    """
    generator = torch.Generator().manual_seed(seed)
    prompt = Prompt.from_ids(batch)
    rows = 2 * len(batch)
    history = prompt.history(prompt.tokens.shape[1] + steps, 2)
    session, logits = HashModel(vocab, seed).start(prompt, rows_per_prompt=2, capacity=0)
    memory = processor.init(history)
    scores = logits
    for number in range(steps):
        scores, memory = processor.apply(history, logits, memory)
        if number + 1 < steps:
            first = torch.arange(rows) // 2 * 2
            sources = first + torch.randint(0, 2, (rows,), generator=generator)
            tokens = torch.randint(0, vocab, (rows,), generator=generator)
            memory = reorder_memory(memory, sources)
            history = history.take(sources).append(tokens)
            logits = session.advance(tokens, sources)
    texts = [tokens[valid].tolist() for tokens, valid in zip(history.tokens, history.valid, strict=True)]
    return [(text, len(batch[row // 2]), scores[row]) for row, text in enumerate(texts)]


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


def check_decoder(
    decoder: Decoder[Any] | Callable[[list[int]], Decoder[Any]],
    *,
    batch_gives_alone: bool = True,
    captures: bool = True,
    max_examples: int = 30,
) -> None:
    """Raises unless a decoder keeps its contract, on toy models and random prompts.

    Shapes must not change in a step; source rows stay inside their prompt; steps after `done` change
    nothing; a batch gives what each prompt alone gives; reported log-probabilities are the model's;
    a step can be captured.

    Args:
        decoder: What to check, or a function from the numbers of the prompts in a batch to a fresh
            decoder for them, where it depends on them (seeds) or has a state of its own (generator).
        batch_gives_alone: False where all rows share one random stream.
        captures: False where the step cannot be captured, or draws from a generator, which tensors
            without contents cannot.
        max_examples: Random cases.

    Raises:
        AssertionError: If a law does not hold; hypothesis says for which case.

    Example:
        >>> check_decoder(dk.BeamSearch(3), max_examples=3)
    """

    def make(numbers: Sequence[int]) -> Decoder[Any]:
        return decoder if isinstance(decoder, Decoder) else decoder(list(numbers))

    @_settings(max_examples)
    @given(prompts(vocab=7), st.integers(0, 2**31), st.integers(1, 6))
    def laws(batch: list[list[int]], seed: int, new: int) -> None:
        model = HashModel(7, seed, end_ids=(END_ID,))
        numbers = range(len(batch))
        _check_steps(make(numbers), model, batch, new)
        out = decode(model, batch, make(numbers), max_new_tokens=new)
        rescored = score(model, batch, out).token_log_probs
        # Sums of single-precision logarithms, in another order.
        torch.testing.assert_close(
            out.token_log_probs[..., : rescored.shape[-1]], rescored, atol=1e-5, rtol=1e-5
        )
        late = decode(model, batch, make(numbers), max_new_tokens=new, check_every=3)
        _check_same(out, late, "asked late whether it is done")
        for number, prompt in enumerate(batch if batch_gives_alone else []):
            alone = decode(model, [prompt], make([number]), max_new_tokens=new)
            _check_same(_only(out, number), alone, f"with prompt {number} alone")

    laws()
    if captures:
        check_captures(make(range(3)))


def _check_steps(decoder: Decoder[Any], model: HashModel, batch: list[list[int]], new: int) -> None:
    """Runs past the end and looks at every step."""
    prompt = Prompt.from_ids(batch)
    rows, length = decoder.rows_per_prompt, prompt.tokens.shape[1]
    session, logits = model.start(prompt, rows_per_prompt=rows, capacity=length + new)
    limits = Limits(
        end_ids=(END_ID,), pad_id=0, prompt_length=length, max_new_tokens=new, vocab=logits.shape[-1]
    )
    state = decoder.init(prompt.history(length + new, rows), limits)
    broken = torch.zeros(len(logits), dtype=torch.bool)
    shape, result, memory = shapes(state), None, ()
    for _ in range(new + 3):
        state, selection, memory, _, broken = step(decoder, Chain(), logits, state, memory, broken)
        _check(shapes(state) == shape, f"{decoder!r} must keep the shapes of its state")
        sources = selection.source_rows
        if sources is not None:
            same_prompt = sources // rows == torch.arange(len(sources)) // rows
            _check(same_prompt.all(), f"{decoder!r} must keep source rows inside their prompt")
        if state.done:
            final = decoder.finalize(state)
            if result is not None:
                _check_same(result, final, "after further steps")
            result = final
        logits = session.advance(selection.tokens, sources)
    _check(result is not None, f"{decoder!r} must be done after max_new_tokens steps")


def _only(out: Decoded, prompt: int) -> Decoded:
    """One prompt's part of a result, cut to its own length."""
    part = slice(prompt, prompt + 1)
    new = max(int(out.lengths[part].max()), 1)
    return replace(
        out,
        tokens=out.tokens[part, :, :new],
        lengths=out.lengths[part],
        finish_reason=out.finish_reason[part],
        valid=out.valid[part],
        token_log_probs=out.token_log_probs[part, :, :new],
        score=out.score[part],
    )


def _check_same(expected: Decoded, got: Decoded, when: str) -> None:
    for name in ("tokens", "lengths", "finish_reason", "valid", "token_log_probs", "score"):
        ours, theirs = getattr(expected, name), getattr(got, name)
        same = torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs
        _check(same, f"{name} must be the same {when}, got {theirs} for {ours}")


def check_scorer(scorer: Scorer, *, max_examples: int = 200) -> None:
    """Raises unless a scorer is elementwise, and its bound holds for every continuation.

    Args:
        scorer: What to check.
        max_examples: Random cases.

    Raises:
        AssertionError: If a law does not hold; hypothesis says for which case.

    Example:
        >>> check_scorer(dk.LengthPenalty(0.7))
    """
    log_prob = st.floats(-1e3, 0, width=32)

    @_settings(max_examples)
    @given(st.lists(st.tuples(log_prob, st.integers(1, 50)), min_size=1), log_prob, st.integers(0, 20))
    def laws(hypotheses: list[tuple[float, int]], added: float, longer: int) -> None:
        log_probs = torch.tensor([log_prob for log_prob, _ in hypotheses])
        lengths = torch.tensor([length for _, length in hypotheses])
        scores = scorer(log_probs, lengths)
        one_by_one = [scorer(log_probs[i : i + 1], lengths[i : i + 1]) for i in range(len(lengths))]
        _check(torch.equal(scores, torch.cat(one_by_one)), f"{scorer!r} must be elementwise")
        for most in (60, 80):
            bound = scorer.bound(log_probs, lengths, most)
            continued = scorer(log_probs + added, (lengths + longer).clamp(max=most))
            slack = 1e-5 * continued.abs()  # rounding of the power and of the sum
            _check(
                (continued <= bound + slack).all(),
                f"{scorer!r}: bound {bound} must not be below the score {continued} of a continuation",
            )

    laws()


def check_model(model: Model, *, vocab: int, tolerance: float = 1e-4, max_examples: int = 10) -> None:
    """Raises unless `advance` gives what a fresh `start` on the grown text gives, whatever the rows.

    Args:
        model: What to check.
        vocab: Number of ids that prompts may hold.
        tolerance: Largest difference between logits, absolute.
        max_examples: Random cases.

    Raises:
        AssertionError: If the logits differ, are not float32, or are not contiguous.

    Example:
        >>> check_model(dk.testing.HashModel(7), vocab=7, max_examples=2)
    """

    @_settings(max_examples)
    @given(prompts(vocab), st.integers(1, 3), st.integers(0, 2**31))
    def laws(batch: list[list[int]], rows: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        prompt = Prompt.from_ids(batch)
        capacity = prompt.tokens.shape[1] + 4
        session, logits = model.start(prompt, rows_per_prompt=rows, capacity=capacity)
        texts = [list(text) for text in batch for _ in range(rows)]
        for number in range(4):
            _check(logits.dtype == torch.float32 and logits.is_contiguous(), "logits must be float32")
            _check_fresh(model, texts, logits, tolerance)
            if number < 3:  # noqa: PLR2004 - the last logits are looked at, not continued
                first = torch.arange(len(texts)) // rows * rows
                sources = first + torch.randint(0, rows, (len(texts),), generator=generator)
                tokens = torch.randint(0, vocab, (len(texts),), generator=generator)
                texts = [[*texts[source], token] for source, token in _pairs(sources, tokens)]
                logits = session.advance(tokens.to(logits.device), sources.to(logits.device))

    laws()


def _check_fresh(
    model: Model, texts: list[list[int]], logits: Float32[Tensor, "rows vocab"], tolerance: float
) -> None:
    for row, text in enumerate(texts):
        _, fresh = model.start(Prompt.from_ids([text]), rows_per_prompt=1, capacity=len(text) + 1)
        torch.testing.assert_close(logits[row], fresh[0], atol=tolerance, rtol=0)


def _pairs(sources: Int64[Tensor, " rows"], tokens: Int64[Tensor, " rows"]) -> list[tuple[int, int]]:
    return list(zip(sources.tolist(), tokens.tolist(), strict=True))


def _check(holds: object, law: str) -> None:
    if not holds:
        raise AssertionError(f"{law}.")
