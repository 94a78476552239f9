"""Texts of an exact search, and what may follow each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.decoders.exact.stored_memory import StoredMemory


@dataclass(eq=False)
class Node:
    """A text, as its last token and the text before it.

    Attributes:
        prompt: The number of the prompt it continues.
        parent: The text before its last token; None: this is the prompt itself.
        token: Its last token.
        length: New tokens.
        total: The sum of what its tokens have added.
        added: What its last token added: the log-probability after the processors, in nats.
        log_prob: The model's own log-probability of that token.
        score: What the text is worth if it ends here.
        bound: What neither it nor a continuation of it is worth more than.
        why: What has finished it; 0: it goes on.
        processed: What the processors remember when they see its logits; None: it was not kept.
        judged: What the scorer remembers of it; None: it was not kept.
        stopping: What the stopping criteria remember of it; None: it was not kept.
        observed: The model's log-probabilities after it, where processors have to see them again.
        attention: What the model attended to there, where the scorer has to see it again.
    """

    prompt: int
    parent: "Node | None" = None
    token: int = -1
    length: int = 0
    total: float = 0.0
    added: float = 0.0
    log_prob: float = 0.0
    score: float = -torch.inf
    bound: float = torch.inf
    finish_code: int = 0
    processed: StoredMemory | None = None
    judged: StoredMemory | None = None
    stopping: StoredMemory | None = None
    model_scores: Float32[Tensor, " vocab"] | None = None
    attention: Float32[Tensor, " context"] | None = None

    def line(self) -> list["Node"]:
        """Every text that it begins with, from the prompt to itself."""
        nodes = [self]
        while nodes[-1].parent is not None:
            nodes.append(nodes[-1].parent)
        return nodes[::-1]

    def tokens(self) -> list[int]:
        """Its new tokens."""
        return [node.token for node in self.line()[1:]]


@dataclass(eq=False)
class Branch:
    """The continuations of a text by one token that wait to be looked at, in their order.

    Attributes:
        node: The text.
        tokens: The tokens, on the host, as the numbers are.
        numbers: `total`, `added`, `log_prob`, `score`, `bound` and `finish_code` of every continuation, in
            rows: see `Node`.
        most: The greatest bound of every continuation and all after it.
        processed: What the processors remember once they have seen the text's logits.
        judged: What the scorer remembers of the continuations; None: it was not kept.
        place: The first that waits.
    """

    node: Node
    tokens: Int64[np.ndarray, " children"]
    numbers: Float32[np.ndarray, "numbers children"]
    most: Float32[np.ndarray, " children"]
    processed: StoredMemory | None = None
    judged: StoredMemory | None = None
    place: int = 0

    @property
    def length(self) -> int:
        """New tokens of the continuations."""
        return self.node.length + 1

    @property
    def waits(self) -> bool:
        """Whether any does."""
        return self.place < len(self.tokens)

    @property
    def bound(self) -> float:
        """What nothing that waits is worth more than."""
        return float(self.most[self.place])

    @property
    def total(self) -> float:
        """The sum of the first that waits."""
        return float(self.numbers[0, self.place])

    def cut(self, number: int) -> None:
        """Keeps the first so many."""
        # Copies: a view would hold on to all that it is cut from.
        self.tokens, self.most = self.tokens[:number].copy(), self.most[:number].copy()
        self.numbers = self.numbers[:, :number].copy()
        if self.judged is not None:
            self.judged = self.judged.take(torch.arange(number))

    def take(self) -> Node:
        """The first that waits, which waits no longer."""
        place = self.place
        self.place += 1
        total, added, log_prob, score, bound, finish_code = self.numbers[:, place].tolist()
        return Node(
            prompt=self.node.prompt,
            parent=self.node,
            token=int(self.tokens[place]),
            length=self.length,
            total=total,
            added=added,
            log_prob=log_prob,
            score=score,
            bound=bound,
            finish_code=int(finish_code),
            processed=self.processed,
            judged=None if self.judged is None else self.judged.take(torch.tensor([place])),
        )


def by_length(nodes: Sequence[Node]) -> list[list[int]]:
    """The places of texts of the same length, the shortest first."""
    lengths = sorted({node.length for node in nodes})
    return [[row for row, node in enumerate(nodes) if node.length == length] for length in lengths]
