"""What must hold for every model."""

from typing import cast

import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.history import Source, rows_of
from decodekit.core.prompt import Prompt
from decodekit.core.vocabulary import Vocabulary
from decodekit.models.protocols import MergeableSession, Model, ModelWithVocabulary, Session, ShrinkingSession
from decodekit.testing.checking import check, repeatable
from decodekit.testing.strategies import prompts


def check_model(model: Model, *, vocab: int, tolerance: float = 1e-4, max_examples: int = 10) -> None:
    """Raises unless `advance` gives what a fresh `start` on the grown text gives, whatever the rows.

    A session that prompts can leave (`ShrinkingSession`) must go on so for those that stay, and one that
    others can be merged with (`MergeableSession`) for all.

    An encoder-decoder (its `vocabulary` has a `decoder_start_id`) reads the random prompts as sources, and
    its decoder's texts begin with the start id.

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

    @repeatable(max_examples)
    @given(prompts(vocab), prompts(vocab), st.integers(1, 3), st.integers(0, 2**31))
    def laws(batch: list[list[int]], others: list[list[int]], rows: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        session, logits, said = _start(model, batch, rows)
        for number in range(4):
            if number == 1 and isinstance(session, MergeableSession) and session.can_merge():
                other, more, theirs = _start(model, others, rows)
                check(isinstance(other, MergeableSession), "every session of a model must merge, or none")
                session.merge(cast("MergeableSession", other))
                logits, said = torch.cat([logits, more]), said + theirs
            if number == 2:  # noqa: PLR2004 - there is a step before and one after
                stay = _let_leave(session, len(said) // rows, rows, generator, logits.device)
                said, logits = [said[row] for row in stay], logits[stay].contiguous()
            check(logits.dtype == torch.float32 and logits.is_contiguous(), "logits must be float32")
            _check_fresh(model, said, logits, tolerance)
            if number < 3:  # noqa: PLR2004 - the last logits are looked at, not continued
                first = torch.arange(len(said)) // rows * rows
                moves = first + torch.randint(0, rows, (len(said),), generator=generator)
                if number == 1:
                    moves = torch.arange(len(said))
                tokens = torch.randint(0, vocab, (len(said),), generator=generator)
                said = [([*said[old][0], token], said[old][1]) for old, token in _pairs(moves, tokens)]
                moved = None if number == 1 else moves.to(logits.device)
                logits = session.advance(tokens.to(logits.device), moved)

    laws()


def _start(
    model: Model, batch: list[list[int]], rows: int
) -> tuple[Session, Float32[Tensor, "rows vocab"], list[tuple[list[int], Source | None]]]:
    """A run, and of every row its text and what its encoder reads."""
    prompt = Prompt.of(batch, model.vocabulary if isinstance(model, ModelWithVocabulary) else Vocabulary())
    session, logits = model.start(prompt, rows_per_prompt=rows, capacity=prompt.tokens.shape[1] + 4)
    said = [(text, _source_of(prompt, number)) for number, text in enumerate(prompt.ids())]
    return session, logits, [one for one in said for _ in range(rows)]


def _let_leave(
    session: Session, batch: int, rows_per_prompt: int, generator: torch.Generator, device: torch.device
) -> list[int]:
    """Lets some prompts leave, if they can; returns the rows that stay."""
    number = 1 + int(torch.randint(0, batch, (), generator=generator))
    stay = torch.randperm(batch, generator=generator)[:number].sort().values
    if not isinstance(session, ShrinkingSession) or not session.can_evict:
        stay = torch.arange(batch)
    else:
        session.keep_prompts(stay.to(device))
    return rows_of(stay, rows_per_prompt).tolist()


def _check_fresh(
    model: Model,
    texts: list[tuple[list[int], Source | None]],
    logits: Float32[Tensor, "rows vocab"],
    tolerance: float,
) -> None:
    for row, (text, source) in enumerate(texts):
        prompt = Prompt.from_ids([text]) if source is None else Prompt.from_ids([text]).with_source(source)
        _, fresh = model.start(prompt, rows_per_prompt=1, capacity=len(text) + 1)
        torch.testing.assert_close(logits[row], fresh[0], atol=tolerance, rtol=0)


def _source_of(prompt: Prompt, number: int) -> Source | None:
    """What one prompt's encoder reads, without padding."""
    if prompt.source is None:
        return None
    tokens = prompt.source.tokens[number][prompt.source.valid[number]][None]
    return Source(tokens, torch.ones_like(tokens, dtype=torch.bool))


def _pairs(sources: Int64[Tensor, " rows"], tokens: Int64[Tensor, " rows"]) -> list[tuple[int, int]]:
    return list(zip(sources.tolist(), tokens.tolist(), strict=True))
