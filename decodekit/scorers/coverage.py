"""How much of the source, or the prompt, the tokens of a hypothesis have attended to."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from decodekit.errors import DecodekitError
from decodekit.history import History
from decodekit.limits import Limits
from decodekit.scorers.base import Growth


class Coverage(NamedTuple):
    """What every hypothesis has attended to.

    Attributes:
        sums: The attention to each token, summed over the new tokens.
        valid: Which columns hold tokens.
    """

    sums: Float[Tensor, "hyps context"]
    valid: Bool[Tensor, "hyps context"]

    @classmethod
    def start(cls, history: History, limits: Limits) -> "Coverage":
        """Nothing yet: of the source, if an encoder has read one, else of the prompt."""
        valid = history.valid[:, : limits.prompt_length]
        if history.source is not None:
            valid = history.spread(history.source.valid)
        return cls(torch.zeros_like(valid, dtype=torch.float32), valid)

    def add(self, growth: Growth) -> "Coverage":
        """The attention of one token more."""
        if growth.attention is None or growth.attention.shape != self.sums.shape:
            seen = None if growth.attention is None else tuple(growth.attention.shape)
            raise DecodekitError(
                f"Coverage: the model must show {len(self.sums)} hypotheses' attention to each of the "
                f"{self.sums.shape[1]} columns of the source or prompt, got {seen}."
            )
        return self._replace(sums=self.sums + growth.attention)
