"""Locally typical truncation."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import is_count, is_number
from decodekit.processors._shared.parameters import PerPrompt, for_rows, per_prompt
from decodekit.processors.base import StatelessProcessor


@final
@dataclass(frozen=True)
class Typical(StatelessProcessor):
    r"""Bans the untypical: keeps the tokens about as surprising as the model expects the next one to be.

    With $H$ the entropy of the next token, takes tokens in order of $|{-\log P(v)} - H|$ until they
    together have the probability `mass`; those as far from $H$ as the last one taken stay too. The
    likeliest token can be banned: where the model is unsure it is less surprising than expected.

    Args:
        mass: Probability of the kept set, strictly between 0 and 1; one number, or one for each
            prompt. Usual values: 0.2-0.95.
        min_tokens_to_keep: Keeps this many of the most typical whatever `mass` says.

    Raises:
        ValueError: If `mass` is not strictly between 0 and 1, or `min_tokens_to_keep` is not an integer
            of at least 1.

    Example:
        >>> scores = torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> Typical(0.2)(torch.tensor([[0]]), scores).isfinite()
        tensor([[False,  True, False]])

    Source:
        Meister et al., 2023, https://arxiv.org/abs/2202.00666.

    Hugging Face:
        `TypicalLogitsWarper(mass, min_tokens_to_keep=...)`, bit for bit.
    """

    mass: PerPrompt
    min_tokens_to_keep: int = 1

    batch_independent = True

    def __post_init__(self) -> None:
        kept = per_prompt(
            "Typical",
            "mass",
            self.mass,
            lambda mass: is_number(mass) and 0 < mass < 1,
            "strictly between 0 and 1",
        )
        if not is_count(self.min_tokens_to_keep, 1):
            raise ValueError(
                "Typical: min_tokens_to_keep must be an integer of at least 1, got "
                f"{self.min_tokens_to_keep!r}."
            )
        object.__setattr__(self, "mass", kept)  # a frozen field

    def process(
        self, history: History, scores: Float32[Tensor, "rows vocab"]
    ) -> Float32[Tensor, "rows vocab"]:
        """The scores of the typical tokens, minus infinity elsewhere."""
        log_probs = scores.log_softmax(-1)
        # What is banned has probability 0 and makes NaN, which does not count.
        entropy = -(log_probs * log_probs.exp()).nansum(-1, keepdim=True)
        distance, order = (-log_probs - entropy).abs().sort(-1)
        # Summed from the most typical on, as Hugging Face sums: the same rounding, the same tokens.
        mass = scores.gather(-1, order).softmax(-1).cumsum(-1)
        taken = (mass < for_rows(self.mass, history, scores)).sum(-1, keepdim=True)
        vocab = scores.shape[-1]
        farther = distance > distance.gather(1, taken.clamp(max=vocab - 1))
        protected = torch.arange(vocab, device=scores.device) < self.min_tokens_to_keep
        banned = (farther & ~protected).scatter(1, order, farther & ~protected)
        return scores.masked_fill(banned, -torch.inf)
