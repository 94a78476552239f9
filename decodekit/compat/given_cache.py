"""A model that goes on from a cache the caller has."""

from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.core.prompt import Prompt
from decodekit.errors import DecodekitError
from decodekit.models.hf.cache import Cache
from decodekit.models.hf.model import HFModel
from decodekit.models.hf.sessions import RowSession
from decodekit.models.protocols import Session

# The name of a given cache in `generate`: since transformers 5.24, and before.
PAST_NAMES = ("cache", "past_key_values")


class Continuing:
    """A decoder-only model whose cache already holds the beginnings of the prompts.

    Args:
        model: The model.
        past: transformers' Cache, one row a prompt; it grows, as in `generate`.
    """

    def __init__(self, model: HFModel, past: Any) -> None:  # noqa: ANN401
        self._model, self._past = model, past
        self.vocabulary = model.vocabulary

    @torch.no_grad()
    def start(
        self, prompt: Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple[Session, Float32[Tensor, "rows vocab"]]:
        """Read the part of the prompts that is not in the cache."""
        length, known = prompt.tokens.shape[1], int(self._past.get_seq_length())
        if rows_per_prompt > 1 or self._model.model.config.is_encoder_decoder:
            raise DecodekitError(
                "generate: a cache goes with a decoder-only model and one sequence a prompt. Leave "
                "it out: the prompt is then computed once."
            )
        if known >= length:
            raise DecodekitError(
                f"generate: a cache must hold less than the whole prompt, got {known} columns of "
                f"{length}. Pass all ids, those in the cache included."
            )
        prompt = prompt.to(self._model.model.device)
        session = RowSession(
            self._model.forward_after(prompt), prompt.mask, capacity, Cache(self._past), known
        )
        logits = session.prefill(prompt.tokens.masked_fill(~prompt.mask, 0))
        session.widen(1)
        return session, logits
