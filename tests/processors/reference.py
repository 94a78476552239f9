"""Parts of slow references in pure Python, and the cases that they are compared on."""

import math
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

import decodekit as dk
from decodekit.testing.strategies import cases

# Histories with scores of 1 to 12 tokens, some tied, some minus infinity, at least one allowed in a row.
CASES = st.integers(1, 12).flatmap(cases)
NO_TEXT = torch.tensor([[0]])
BANNED = -math.inf


def probabilities(scores: Sequence[float]) -> list[float]:
    """The softmax."""
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / math.fsum(weights) for weight in weights]


def kept(processor: dk.StatelessProcessor, scores: Tensor | Sequence[float]) -> list[int]:
    """The ids that survive in the only row."""
    row = torch.as_tensor(scores, dtype=torch.float32).view(1, -1)
    return [token for token, score in enumerate(processor(NO_TEXT, row)[0].tolist()) if score > BANNED]


def history_of(text: list[list[int]], room: int, rows_per_prompt: int = 1) -> dk.History:
    """The history of prompts, with room for new tokens."""
    prompt = dk.Prompt.from_ids(text)
    return prompt.history(prompt.tokens.shape[1] + room, rows_per_prompt)


def assert_bans(out: Tensor, scores: Tensor, excess: Sequence[Sequence[float]], near: float = 1e-5) -> None:
    """Bans exactly where `excess` is above 0, and leaves the other scores as they are.

    Args:
        out: What a processor made.
        scores: Of what.
        excess: By the reference, how far beyond the bar every token is.
        near: So close to the bar float32 may round to either side.
    """
    for made, given, beyond in zip(out.tolist(), scores.tolist(), excess, strict=True):
        for after, before, far in zip(made, given, beyond, strict=True):
            if before == BANNED or abs(far) > near:
                assert after == (BANNED if far > 0 else before)
