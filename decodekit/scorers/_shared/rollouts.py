"""How likely phrases are to come soon: what a scorer that looks ahead asks a model."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.limits import Limits
from decodekit.core.prompt import Prompt
from decodekit.errors import DecodekitError
from decodekit.models.protocols import Model


class Hope(NamedTuple):
    """Tokens that some texts wait for.

    Attributes:
        ids: One after the other.
        texts: Which texts wait for them.
    """

    ids: tuple[int, ...]
    texts: Bool[Tensor, " texts"]


def likeliest_ahead(  # noqa: PLR0913 - two kinds of hopes
    model: Model,
    texts: Prompt,
    hopes: Sequence[Hope],
    begun: Sequence[Hope],
    *,
    steps: int,
    room: int,
    limits: Limits,
) -> Float32[Tensor, " texts"]:
    """The log-probability of the likeliest hope, next or after some tokens of a greedy continuation.

    Args:
        model: The model that goes on.
        texts: What was said.
        hopes: What may come at any of the places.
        begun: What may only come next: the rest of phrases that the texts have begun.
        steps: Places to look at, the first of them next to the text.
        room: Tokens that may still come.
        limits: Where a continuation ends.

    Returns:
        Nats; minus infinity where no hope fits.
    """
    rows, columns = texts.tokens.shape
    session, logits = model.start(texts, rows_per_prompt=1, capacity=columns + steps)
    if logits.shape[-1] != limits.vocab:
        raise DecodekitError(
            f"Lookahead: both models must have the same vocabulary, got {logits.shape[-1]} tokens for "
            f"{limits.vocab}. Use a model with the same tokenizer."
        )
    goes = torch.ones(rows, dtype=torch.bool, device=logits.device)
    best = torch.full((rows,), -torch.inf, device=logits.device)
    for step in range(min(steps, room)):
        log_probs = logits.log_softmax(-1)
        for hope in [*hopes, *begun] if step == 0 else hopes:
            if len(hope.ids) <= room - step:
                waiting = hope.texts.to(goes.device) & goes
                best = best.maximum(_log_prob(model, texts, log_probs, hope.ids, waiting))
        tokens = log_probs.argmax(-1)
        goes = goes & ~limits.is_end(tokens)
        if step + 1 == min(steps, room) or not goes.any():
            break
        texts = _append(texts, tokens)
        logits = session.advance(tokens, None)
    return best


def _log_prob(
    model: Model,
    texts: Prompt,
    log_probs: Float32[Tensor, "texts vocab"],
    ids: tuple[int, ...],
    waiting: Bool[Tensor, " texts"],
) -> Float32[Tensor, " texts"]:
    """What the ids have after the texts that wait for them; minus infinity after others."""
    total = log_probs[:, ids[0]].masked_fill(~waiting, -torch.inf)
    chosen = (total > -torch.inf).nonzero()[:, 0]
    if len(ids) == 1 or not len(chosen):
        return total
    # The session goes on with the greedy continuation; the ids need a run of their own.
    texts = _append(texts.take(chosen), torch.full_like(chosen, ids[0]))
    session, logits = model.start(texts, rows_per_prompt=1, capacity=texts.tokens.shape[1] + len(ids) - 2)
    rest = logits.log_softmax(-1)[:, ids[1]]
    for last, following in pairwise(ids[1:]):
        logits = session.advance(torch.full_like(chosen, last), None)
        rest = rest + logits.log_softmax(-1)[:, following]
    return total.index_add(0, chosen, rest)


def _append(texts: Prompt, tokens: Int64[Tensor, " texts"]) -> Prompt:
    """The texts with one more token each."""
    tokens = tokens.to(texts.tokens.device)[:, None]
    said = torch.ones_like(tokens, dtype=torch.bool)
    return Prompt(torch.cat([texts.tokens, tokens], 1), torch.cat([texts.mask, said], 1), texts.source)
