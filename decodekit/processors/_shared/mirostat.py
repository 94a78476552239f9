"""The surprise bound of both versions of mirostat, and its update after every token."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.processors._shared.parameters import PerPrompt, for_rows, map_per_prompt
from decodekit.processors.base import LogitsProcessor, Scores, check_per_prompt


class MirostatMemory(NamedTuple):
    """The bound of every row, and the surprise of every token at the previous step, both in bits."""

    mu: Float32[Tensor, "rows 1"]
    surprise: Float32[Tensor, "rows seen"]  # no columns before the first step


@dataclass(frozen=True)
class Mirostat(LogitsProcessor):
    """A processor whose bound on the surprise of tokens follows the surprise of the emitted ones."""

    tau: PerPrompt
    eta: PerPrompt = 0.1

    capturable = False
    argmax_invariant = True
    batch_independent = True

    @abstractmethod
    def banned(self, history: History, scores: Scores, memory: MirostatMemory) -> Bool[Tensor, "rows vocab"]:
        """Mark the tokens to ban, given the bounds and the surprise of every token at this step."""

    @final
    @override
    def init(self, history: History) -> MirostatMemory:
        """Return a bound of twice the target."""
        check_per_prompt(self, history)
        none = torch.zeros(len(history.tokens), 1, device=history.tokens.device)
        mu = none + for_rows(map_per_prompt(lambda value: 2 * value, self.tau), history, none)
        return MirostatMemory(mu, none[:, :0])

    @final
    @override
    def apply(
        self, history: History, scores: Scores, memory: MirostatMemory
    ) -> tuple[Scores, MirostatMemory]:
        memory = MirostatMemory(self._learn(history, memory), scores.log_softmax(-1) / -math.log(2))
        return scores.masked_fill(self.banned(history, scores, memory), -torch.inf), memory

    def _learn(self, history: History, memory: MirostatMemory) -> Float32[Tensor, "rows 1"]:
        """Return the bound after the newest token: lower if it surprised more than `tau` bits, else higher.

        A token that an earlier processor had banned (padding after the end, a forced token) changes nothing.
        """
        if memory.surprise.shape[1] == 0:
            return memory.mu
        surprise = memory.surprise.gather(1, history.last()[:, None])
        error = surprise - for_rows(self.tau, history, surprise)
        return memory.mu - for_rows(self.eta, history, surprise) * torch.where(error.isfinite(), error, 0.0)
