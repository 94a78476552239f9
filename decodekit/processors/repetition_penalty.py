"""The repetition penalty."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.history import History
from decodekit.processors.base import StatelessProcessor, is_number, seen_tokens


@final
@dataclass(frozen=True)
class RepetitionPenalty(StatelessProcessor):
    """Makes every token that already stands in the text less likely, prompt included.

    A positive score is divided by the penalty, a negative one multiplied by it; once, however often
    the token occurs. Under beam search scores are log-probabilities, so it always multiplies.

    Args:
        penalty: Above 0; 1 changes nothing, above 1 discourages repetition, below 1 encourages it.
            Usual values: 1.05-1.3.

    Raises:
        ValueError: If `penalty` is not a finite number above 0.

    Example:
        >>> RepetitionPenalty(2.0)(torch.tensor([[0, 1]]), torch.tensor([[3.0, -3.0, 3.0]]))
        tensor([[ 1.5000, -6.0000,  3.0000]])

    Source:
        Keskar et al., 2019, https://arxiv.org/abs/1909.05858, section 4.1.

    Hugging Face:
        `RepetitionPenaltyLogitsProcessor(penalty)`, bit for bit. Left padding does not count, as in
        `generate` of transformers 5; the class alone counts it, and so did `generate` in 4.
    """

    penalty: float

    def __post_init__(self) -> None:
        if not (is_number(self.penalty) and 0 < self.penalty < float("inf")):
            raise ValueError(
                f"RepetitionPenalty: penalty must be a finite number above 0, got {self.penalty!r}."
            )

    def process(
        self, history: History, scores: Float32[Tensor, "rows vocab"]
    ) -> Float32[Tensor, "rows vocab"]:
        """The scores, with those of tokens that were said pushed down."""
        seen = seen_tokens(history.tokens, history.valid, scores.shape[-1])
        pushed = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(seen, pushed, scores)
