"""Log-probabilities of phrases at and after the end of texts, from greedy rollouts of a model."""

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


class Target(NamedTuple):
    """A phrase, or the rest of one, and the texts that need it."""

    ids: tuple[int, ...]
    texts: Bool[Tensor, " texts"]


def best_log_prob(  # noqa: PLR0913 - two kinds of targets
    model: Model,
    texts: Prompt,
    anywhere: Sequence[Target],
    next_only: Sequence[Target],
    *,
    steps: int,
    room: int,
    limits: Limits,
) -> Float32[Tensor, " texts"]:
    """Return the log-probability of each text's likeliest target; minus infinity if no target fits.

    Args:
        model: Continues the texts greedily.
        texts: Hypotheses, prompts included.
        anywhere: Targets at any of the positions.
        next_only: Targets at the first position: the rest of phrases that the texts end in the middle of.
        steps: Positions to look at. The first is directly after the text.
        room: Tokens that may still come.
        limits: Of the run: its end ids and vocabulary.
    """
    rows, columns = texts.tokens.shape
    session, logits = model.start(texts, rows_per_prompt=1, capacity=columns + steps)
    if logits.shape[-1] != limits.vocab:
        raise DecodekitError(
            f"Lookahead: both models must have the same vocabulary, got {logits.shape[-1]} tokens for "
            f"{limits.vocab}. Use a model with the same tokenizer."
        )
    active = torch.ones(rows, dtype=torch.bool, device=logits.device)
    best = torch.full((rows,), -torch.inf, device=logits.device)
    for step in range(min(steps, room)):
        log_probs = logits.log_softmax(-1)
        for target in [*anywhere, *next_only] if step == 0 else anywhere:
            if len(target.ids) <= room - step:
                selected = target.texts.to(active.device) & active
                best = best.maximum(_log_prob(model, texts, log_probs, target.ids, selected))
        tokens = log_probs.argmax(-1)
        active = active & ~limits.is_end(tokens)
        if step + 1 == min(steps, room) or not active.any():
            break
        texts = _append(texts, tokens)
        logits = session.advance(tokens, None)
    return best


def _log_prob(
    model: Model,
    texts: Prompt,
    log_probs: Float32[Tensor, "texts vocab"],
    ids: tuple[int, ...],
    selected: Bool[Tensor, " texts"],
) -> Float32[Tensor, " texts"]:
    """Return the log-probability of the ids after the selected texts; minus infinity for other texts."""
    total = log_probs[:, ids[0]].masked_fill(~selected, -torch.inf)
    chosen = (total > -torch.inf).nonzero()[:, 0]
    if len(ids) == 1 or not len(chosen):
        return total
    # The session goes on with the greedy continuation, so the ids need a session of their own.
    texts = _append(texts.take(chosen), torch.full_like(chosen, ids[0]))
    session, logits = model.start(texts, rows_per_prompt=1, capacity=texts.tokens.shape[1] + len(ids) - 2)
    rest = logits.log_softmax(-1)[:, ids[1]]
    for last, following in pairwise(ids[1:]):
        logits = session.advance(torch.full_like(chosen, last), None)
        rest = rest + logits.log_softmax(-1)[:, following]
    return total.index_add(0, chosen, rest)


def _append(texts: Prompt, tokens: Int64[Tensor, " texts"]) -> Prompt:
    tokens = tokens.to(texts.tokens.device)[:, None]
    valid = torch.ones_like(tokens, dtype=torch.bool)
    return Prompt(torch.cat([texts.tokens, tokens], 1), torch.cat([texts.mask, valid], 1), texts.source)
