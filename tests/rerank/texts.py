"""Texts for the tests: arbitrary ones, ones that have much in common, and results that hold given ones."""

import torch
from hypothesis import strategies as st

import decodekit as dk

# Any characters but lone surrogates, which no tokenizer of sacrebleu reads.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
WORDS = [
    "the",
    "The",
    "cat",
    "cats",
    "(sat)",
    "on",
    "a",
    "mat.",
    "mat",
    "3.5",
    "“so”",
    "it's",
    "!",
    "half-\n",
]
SENTENCES = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)


def decoded(
    texts: list[list[str]],
    log_probs: list[list[float]] | None = None,
    ids: list[list[list[int]]] | None = None,
) -> dk.Decoded:
    """A result that holds some texts; one id per different text, unless ids are given."""
    known = sorted({text for row in texts for text in row})
    ids = ids or [[[known.index(text)] for text in row] for row in texts]
    hyps, new = max(map(len, texts)), max((len(own) for row in ids for own in row), default=1)
    tokens, values = torch.full((len(texts), hyps, new), 99), torch.zeros(len(texts), hyps, new)
    lengths, valid = torch.zeros(len(texts), hyps, dtype=torch.long), torch.zeros(len(texts), hyps) > 0
    for row, own in enumerate(ids):
        for place, hypothesis in enumerate(own):
            tokens[row, place, : len(hypothesis)] = torch.tensor(hypothesis)
            lengths[row, place], valid[row, place] = len(hypothesis), True
            values[row, place, 0] = -1.0 if log_probs is None else log_probs[row][place]
    return dk.Decoded(
        tokens=tokens,
        lengths=lengths,
        finish_reason=[["length" if is_valid else "missing" for is_valid in row] for row in valid.tolist()],
        valid=valid,
        token_log_probs=values,
        score=torch.zeros(len(texts), hyps),
        parents=torch.arange(hyps)[:, None].expand(len(texts), hyps, new),
        pad_id=99,
        texts=[list(row) for row in texts],
    )
