"""The trie of what has not been sampled: shares of probability, and the texts they belong to."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Stopping
from decodekit.core.pytrees import Memory


class Choices(NamedTuple):
    """The tokens that may follow a text, kept on the host.

    Attributes:
        ids: Which tokens they are; None: all there are.
        scores: What the processors make of them.
        log_probs: The model's own log-probabilities.
    """

    ids: Int64[Tensor, " choices"] | None
    scores: Float32[Tensor, " choices"]
    log_probs: Float32[Tensor, " choices"]

    @classmethod
    def of(cls, logits: Float32[Tensor, "1 vocab"], scores: Float32[Tensor, "1 vocab"]) -> "Choices":
        """The tokens that are not banned."""
        same = scores is logits
        log_probs, scores = logits[0].log_softmax(-1).cpu(), scores[0].cpu()
        allowed = scores > -torch.inf
        if allowed.all():
            return cls(None, log_probs if same else scores, log_probs)  # the same distribution, kept once
        ids = torch.arange(len(scores), device="cpu")[allowed]
        return cls(ids, scores[allowed], log_probs[allowed])

    def token(self, place: int) -> int:
        """The token at a place among the choices."""
        return place if self.ids is None else int(self.ids[place])

    def probs(self) -> Float64[Tensor, " choices"]:
        """Their probabilities."""
        return self.scores.double().softmax(-1)


@dataclass(eq=False)
class Node:
    """A text, and how much of what continues it has not been sampled.

    Attributes:
        history: The text, a history of one row.
        stopping: What the stopping criteria remember of it.
        token: Its last token.
        log_prob: The model's own log-probability of that token, in nats.
        log_mass: The log-probability of the whole text, of what is sampled from.
        why: What has finished it; 0: it goes on.
        left: The share of its probability that has not been sampled: 1 unless it was visited.
        choices: What may follow; None: not visited yet.
        children: Those of its continuations that were visited, by their place among the choices.
        logits: The model's, for processors that have to read the text again.
        memory: What the processors remember after it, where that can be kept.
    """

    history: History
    stopping: Stopping
    token: int = -1
    log_prob: float = 0.0
    log_mass: float = 0.0
    finish_code: int = 0
    left: float = 1.0
    choices: Choices | None = None
    children: dict[int, "Node"] = field(default_factory=dict)
    logits: Float32[Tensor, "1 vocab"] | None = None
    memory: Memory = None

    def unsampled(self, choices: Choices) -> Float64[Tensor, " choices"]:
        """The share of each choice that has not been sampled, of the whole text's.

        Never a difference: what is left of nearly nothing has all its digits, and of nothing it is 0.
        """
        probs = choices.probs()
        for place, child in self.children.items():
            probs[place] *= child.left
        return probs
