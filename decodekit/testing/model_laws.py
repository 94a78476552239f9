"""The laws of models."""

from typing import NamedTuple, cast

import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float32
from torch import Tensor

from decodekit.core.history import Source, rows_of
from decodekit.core.prompt import Prompt, PromptSubset
from decodekit.engine.decode import vocabulary_of
from decodekit.models.protocols import MergeableSession, Model, Session, ShrinkingSession
from decodekit.testing.checking import are_close, check, repeatable
from decodekit.testing.strategies import prompts


class Row(NamedTuple):
    """The tokens of a row, and the source that its encoder reads."""

    tokens: list[int]
    source: Source | None


def check_model(model: Model, *, vocab: int, tolerance: float = 1e-4, max_examples: int = 10) -> None:
    """Check that `advance` gives the logits of a fresh `start` on the longer text, for every reordering.

    This must also hold after prompts are evicted from a `ShrinkingSession`, and after another session is
    merged into a `MergeableSession`. An encoder-decoder (its `vocabulary` has a `decoder_start_id`) reads the
    random prompts as sources, and its decoder begins with the start id.

    Args:
        model: The model.
        vocab: Number of ids that prompts may hold.
        tolerance: Largest difference between logits, absolute.
        max_examples: Number of random cases.

    Raises:
        AssertionError: If the logits differ, or are not float32 or contiguous; the message has the case.

    Example:
        >>> check_model(dk.testing.HashModel(7), vocab=7, max_examples=2)
    """

    @repeatable(max_examples)
    @given(prompts(vocab), prompts(vocab), st.integers(1, 3), st.integers(0, 2**31))
    def laws(batch: list[list[int]], merged: list[list[int]], width: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        session, logits, rows = _start(model, batch, width)
        events = ["start"]
        for number in range(4):
            if number == 1 and isinstance(session, MergeableSession) and session.can_merge():
                other, other_logits, other_rows = _start(model, merged, width)
                law = "check_model: every session of a model must be a MergeableSession, or none"
                check(isinstance(other, MergeableSession), law)
                session.merge(cast("MergeableSession", other))
                logits, rows = torch.cat([logits, other_logits]), rows + other_rows
                events.append("merge")
            if number == 2:  # noqa: PLR2004 - there is a step before and one after
                stay = _evict(session, len(rows) // width, width, generator, logits.device)
                if len(stay) < len(rows):
                    events.append(f"eviction of all rows but {stay}")
                rows, logits = [rows[row] for row in stay], logits[stay].contiguous()
            _check_fresh(model, rows, logits, tolerance, ", ".join(events))
            if number < 3:  # noqa: PLR2004 - the last logits are checked, not continued
                first = torch.arange(len(rows)) // width * width
                sources = first + torch.randint(0, width, (len(rows),), generator=generator)
                if number == 1:
                    sources = torch.arange(len(rows))
                tokens = torch.randint(0, vocab, (len(rows),), generator=generator)
                pairs = zip(sources.tolist(), tokens.tolist(), strict=True)
                rows = [Row([*rows[old].tokens, token], rows[old].source) for old, token in pairs]
                source_rows = None if number == 1 else sources.to(logits.device)
                logits = session.advance(tokens.to(logits.device), source_rows)
                events.append(f"advance with source_rows {None if number == 1 else sources.tolist()}")

    laws()


def _start(
    model: Model, batch: list[list[int]], width: int
) -> tuple[Session, Float32[Tensor, "rows vocab"], list[Row]]:
    """A session, its first logits, and its rows, `width` per prompt."""
    prompt = Prompt.of(batch, vocabulary_of(model))
    session, logits = model.start(prompt, rows_per_prompt=width, capacity=prompt.tokens.shape[1] + 4)
    rows = []
    for number, tokens in enumerate(prompt.ids()):
        source = PromptSubset([number], prompt).prompt().source
        rows += [Row(tokens, source)] * width
    return session, logits, rows


def _evict(
    session: Session, batch: int, rows_per_prompt: int, generator: torch.Generator, device: torch.device
) -> list[int]:
    """Evict some prompts, if the session can; returns the rows that stay."""
    number = 1 + int(torch.randint(0, batch, (), generator=generator))
    stay = torch.randperm(batch, generator=generator)[:number].sort().values
    if not isinstance(session, ShrinkingSession) or not session.can_evict:
        return list(range(batch * rows_per_prompt))
    session.keep_prompts(stay.to(device))
    return rows_of(stay, rows_per_prompt).tolist()


def _check_fresh(
    model: Model, rows: list[Row], logits: Float32[Tensor, "rows vocab"], tolerance: float, events: str
) -> None:
    is_right = logits.dtype == torch.float32 and logits.is_contiguous()
    check(is_right, f"check_model: logits must be float32 and contiguous after {events}", dtype=logits.dtype)
    for number, (tokens, source) in enumerate(rows):
        prompt = Prompt.from_ids([tokens])
        prompt = prompt if source is None else prompt.with_source(source)
        _, fresh = model.start(prompt, rows_per_prompt=1, capacity=len(tokens) + 1)
        law = f"check_model: after {events}, row {number} must have the logits of a fresh start on its tokens"
        holds = are_close(fresh[0], logits[number], atol=tolerance)
        check(holds, law, tokens=tokens, got=logits[number], fresh=fresh[0], tolerance=tolerance)
