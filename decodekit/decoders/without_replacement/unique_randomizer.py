"""A prompt's samples without replacement, drawn one after the other down the trie of what is left."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.utils._pytree import tree_leaves

from decodekit import rng
from decodekit.core.pytrees import Memory
from decodekit.decoders.speculative.speculative_row import SpeculativeRow
from decodekit.decoders.without_replacement.residual_trie import Choices, Node
from decodekit.processors.base import LogitsProcessor


class Drawn(NamedTuple):
    """A sample: its tokens as nodes, and the probability that was left when it was drawn."""

    nodes: list[Node]
    left: float


@dataclass(eq=False)
class Walk:
    """A draw on its way down the trie.

    Attributes:
        number: How many draws were begun before.
        path: The texts it has come through, from the prompt on.
        live: What the processors remember after a text of the path, where that cannot be kept.
        has_ended: Whether its last text has ended, or cannot go on.
    """

    number: int
    path: list[Node]
    live: tuple[Node | None, Memory] | None = None
    has_ended: bool = False

    @property
    def tokens(self) -> list[int]:
        """The new tokens so far."""
        return [node.token for node in self.path[1:]]


class ResidualTrie:
    """What has not been sampled of the continuations of one prompt.

    A draw walks down from the root, at every text to a continuation by its unsampled share. It waits where
    the model has not said yet what may follow. Draws of one round do not know of each other; when all have
    ended they are taken in order, and one that has met what another took before it is void. To draw until it
    is something new is to draw from what is left.

    Args:
        line: The prompt, to which nothing is said.
        processor: What changes the scores.
        seed: The seed of all draws.
        wanted: How many samples to draw.
        parallel: Draws of a round.
    """

    def __init__(
        self, line: SpeculativeRow, processor: LogitsProcessor, seed: int, *, wanted: int, parallel: int
    ) -> None:
        self.samples: list[Drawn] = []
        self.dead_ends: list[float] = []
        self._line, self._processor = line, processor
        self._root = Node(line.state.history, line.state.stopping)
        self._wanted, self._parallel, self._begun = wanted, parallel, 0
        self._seed = torch.tensor([seed], device="cpu")
        # Tensors are values, and can be kept. Anything else may be the run of a second model, which can only
        # read on: it reads the text again.
        self._keeps = all(isinstance(leaf, Tensor | int | float | None) for leaf in tree_leaves(line.memory))
        self.walks: list[Walk] = []
        self._begin()

    @property
    def left(self) -> float:
        """The probability of what has not been sampled."""
        return self._root.left

    def read(self, walk: Walk, logits: Float32[Tensor, "1 vocab"]) -> None:
        """Takes the logits after the text at which a draw waits, and lets it go on.

        With the last draw of a round the round ends, and another begins unless all is done.
        """
        node = walk.path[-1]
        if node.choices is None:  # else another draw has waited at the same text
            line = self._line._replace(
                state=self._line.state._replace(history=node.history), memory=self._remembered(walk)
            )
            line, scores = line.score(self._processor, logits)
            node.choices = Choices.of(logits, scores)
            if self._keeps:
                node.memory = line.memory
            else:
                walk.live = (node, line.memory)
                node.logits = logits.clone()  # the session may use its own again
        self._go_on(walk)
        while self.walks and all(other.has_ended for other in self.walks):
            self._take()
            self._begin()

    def _begin(self) -> None:
        """Begins a round: draws, as far as they come without the model."""
        self.walks = []
        if len(self.samples) < self._wanted and self.left > 0:
            numbers = range(self._begun, self._begun + self._parallel)
            self.walks = [Walk(number, [self._root]) for number in numbers]
            if self._begun == 0:  # what can only read on is for one draw
                self.walks[0].live = (None, self._line.memory)
            self._begun += self._parallel
        for walk in self.walks:
            self._go_on(walk)

    def _go_on(self, walk: Walk) -> None:
        """Takes a draw down to where it ends, or waits for the model."""
        last = walk.path[-1]
        while not last.finish_code and last.choices is not None and len(last.choices.scores):
            last = self._draw(walk, last, last.choices)
            walk.path.append(last)
        walk.has_ended = last.finish_code > 0 or last.choices is not None

    def _draw(self, walk: Walk, node: Node, choices: Choices) -> Node:
        """A continuation by its unsampled share."""
        stream = torch.tensor([walk.number], device="cpu")
        step = torch.tensor(len(walk.path) - 1, device="cpu")
        place = int(rng.draw_seeded(node.unsampled(choices)[None], self._seed, stream, step))
        if place not in node.children:
            node.children[place] = self._grow(node, choices, place)
        return node.children[place]

    def _grow(self, node: Node, choices: Choices, place: int) -> Node:
        """The text with one more token."""
        token, device = choices.token(place), node.history.tokens.device
        history = node.history.append(torch.tensor([token], device=device))
        log_prob = choices.log_probs[place : place + 1]
        finish_code, stopping = self._line.state.limits.finish(history, log_prob.to(device), node.stopping)
        share = float(choices.probs()[place])
        return Node(
            history=history,
            stopping=stopping,
            token=token,
            log_prob=float(log_prob),
            log_mass=node.log_mass + math.log(share),
            finish_code=int(finish_code),
        )

    def _take(self) -> None:
        """Takes what the draws of a round have come to, in their order, out of what is left."""
        for walk in self.walks:
            *above, last = walk.path
            if last.left == 0 or len(self.samples) >= self._wanted:
                continue
            if last.finish_code:
                self.samples.append(Drawn(walk.path[1:], self.left))
            else:
                self.dead_ends.append(self.left)
            last.left = 0.0
            for node in reversed(above):
                if node.choices is not None:
                    node.left = float(node.unsampled(node.choices).sum())

    def _remembered(self, walk: Walk) -> Memory:
        """What the processors remember before the logits of the text at which a draw waits."""
        before = walk.path[-2] if len(walk.path) > 1 else None
        if self._keeps:
            return self._line.memory if before is None else before.memory
        if walk.live is not None and walk.live[0] is before:
            return walk.live[1]
        memory = self._processor.init(self._root.history)
        for node in walk.path[:-1]:
            if node.logits is not None:
                _, memory = self._processor.apply(node.history, node.logits, memory)
        return memory
