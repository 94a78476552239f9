"""Every text there is and what it is worth: each a row of its own that says its tokens, nothing shared."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

import decodekit as dk

LOGITS_ONLY = dk.Chain()


class EmittedTokens(NamedTuple):
    """What a model says along every text of some prompts, step by step."""

    log_probs: list[Float32[Tensor, "rows vocab"]]
    attention: list[Float32[Tensor, "rows context"]]


class Texts(NamedTuple):
    """All texts of a length at most, the same for every prompt; what comes after an end id is not of them."""

    tokens: Int64[Tensor, "texts new"]
    lengths: Int64[Tensor, " texts"]

    def places(self) -> dict[tuple[int, ...], int]:
        """Where each text stands."""
        rows = zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)
        return {tuple(row[:length]): place for place, (row, length) in enumerate(rows)}


@cache
def all_texts(vocab: int, new: int, end_ids: tuple[int, ...]) -> Texts:
    tokens = torch.cartesian_prod(*[torch.arange(vocab)] * new).view(-1, new)
    is_end = torch.zeros_like(tokens, dtype=torch.bool)
    for end_id in end_ids:
        is_end |= tokens == end_id
    lengths = torch.where(is_end.any(-1), is_end.int().argmax(-1) + 1, new)
    is_junk = torch.arange(new) >= lengths[:, None]
    once = (tokens.masked_fill(~is_junk, 0) == 0).all(-1)
    return Texts(tokens[once], lengths[once])


@cache
def read_all(
    vocab: int, seed: int, prompts: tuple[tuple[int, ...], ...], new: int, end_ids: tuple[int, ...]
) -> EmittedTokens:
    """What a `dk.testing.HashModelWithOutputs` says along all texts: once for all scorers."""
    model, texts = dk.testing.HashModelWithOutputs(vocab, seed), all_texts(vocab, new, end_ids)
    prompt, rows = dk.Prompt.from_ids(prompts), len(texts.tokens)
    session, logits = model.start_with_outputs(
        prompt,
        rows_per_prompt=rows,
        capacity=prompt.tokens.shape[1] + new,
        outputs_spec=dk.ModelOutputsSpec(attention=True),
    )
    log_probs, attention = [], []
    for tokens in texts.tokens.T:
        log_probs.append(logits.log_softmax(-1))
        assert session.model_outputs.attention is not None
        attention.append(session.model_outputs.attention)
        logits = session.advance(tokens.repeat(len(prompts)), None)
    return EmittedTokens(log_probs, attention)


def worth_of_all(  # noqa: PLR0913
    said: EmittedTokens,
    texts: Texts,
    prompts: Sequence[Sequence[int]],
    scorer: dk.PathScorer,
    chain: dk.LogitsProcessor = LOGITS_ONLY,
    *,
    vocab: int,
    end_ids: tuple[int, ...],
) -> Float32[Tensor, "batch texts"]:
    """The score of every text of every prompt; minus infinity for those that the processors ban."""
    prompt, new = dk.Prompt.from_ids(prompts), texts.tokens.shape[1]
    length, number = prompt.tokens.shape[1], len(texts.tokens)
    history = prompt.history(length + new, number)
    limits = dk.Limits(end_ids=end_ids, pad_id=0, prompt_length=length, max_new_tokens=new, vocab=vocab)
    memory, remembered = scorer.init(history, limits), chain.init(history)
    rows = torch.arange(len(history.tokens))
    totals, worth = torch.zeros(len(rows)), torch.full((len(rows),), torch.nan)
    lengths = texts.lengths.repeat(len(prompts))
    for step in range(new):
        scores, remembered = chain.apply(history, said.log_probs[step], remembered)
        tokens = texts.tokens[:, step].repeat(len(prompts))
        added = scores.gather(1, tokens[:, None])[:, 0]
        extended = dk.ExtendedHypotheses(
            history, rows, tokens, added, said.attention[step] if scorer.outputs_spec else None
        )
        memory, totals = scorer.update(extended, memory), totals + added
        now = scorer.score(totals, torch.full_like(lengths, step + 1), memory)
        worth = torch.where(lengths == step + 1, now.masked_fill(totals == -torch.inf, -torch.inf), worth)
        history = history.append(tokens)
    return worth.view(len(prompts), number)
