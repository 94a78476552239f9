"""A prompt's samples without replacement, drawn one after the other down the trie of what is left."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.utils._pytree import tree_leaves

from decodekit import rng
from decodekit.decoders.line import Line
from decodekit.decoders.rows import RowState
from decodekit.decoders.unsampled import Choices, Node
from decodekit.history import History
from decodekit.limits import Limits
from decodekit.memory import Memory
from decodekit.processors.base import LogitsProcessor


class Drawn(NamedTuple):
    """A sample: its tokens as nodes, and the probability that was left when it was drawn."""

    nodes: list[Node]
    left: float


class UnsampledTexts:
    """What has not been sampled of the continuations of one prompt.

    A draw goes down from the root, at every text to a continuation by its unsampled share. It waits where the
    model has not said yet what may follow.

    Args:
        prompt: The prompt's number.
        history: The prompt, a history of one row.
        processor: What changes the scores.
        limits: Where texts end.
        seed: The seed of all draws.
        wanted: How many samples to draw.
    """

    def __init__(
        self,
        prompt: int,
        history: History,
        processor: LogitsProcessor,
        limits: Limits,
        seed: int,
        wanted: int,
    ) -> None:
        self.samples: list[Drawn] = []
        self.dead_ends: list[float] = []
        self._root = Node(history, limits.start(history))
        self._path = [self._root]
        self._limits, self._processor, self._wanted = limits, processor, wanted
        self._seed = torch.tensor([seed], device="cpu")
        self._start = processor.init(history)
        # Tensors are values, and can be kept. Anything else may be the run of a second model, which can only
        # read on: it reads the text again.
        self._keeps = all(isinstance(leaf, Tensor | int | float | None) for leaf in tree_leaves(self._start))
        self._live: tuple[Node | None, Memory] = (None, self._start)  # after which text this is remembered
        self._line = Line(prompt, RowState.start(history, limits), ())

    @property
    def draws(self) -> int:
        """How many draws have come to their end."""
        return len(self.samples) + len(self.dead_ends)

    @property
    def left(self) -> float:
        """The probability of what has not been sampled."""
        return self._root.left

    @property
    def waits(self) -> bool:
        """Whether a draw waits for the model."""
        last = self._path[-1]
        return not self._is_done and last.choices is None and last.why == 0

    @property
    def tokens(self) -> list[int]:
        """The new tokens of the present draw so far."""
        return [node.token for node in self._path[1:]]

    def read(self, logits: Float32[Tensor, "1 vocab"]) -> None:
        """Takes the logits after the text that waits, and goes on until one waits again or all is done."""
        node = self._path[-1]
        line = self._line._replace(
            state=self._line.state._replace(history=node.history), memory=self._remembered()
        )
        line, scores = line.score(self._processor, logits)
        self._live = (node, line.memory)
        node.choices = Choices.of(logits, scores)
        if self._keeps:
            node.memory = line.memory
        else:
            node.logits = logits.clone()  # the session may use its own again
        while not self._is_done:
            last = self._path[-1]
            if last.why:
                self.samples.append(Drawn(self._path[1:], self.left))
                self._close()
            elif last.choices is None:
                return
            elif not len(last.choices.scores):
                self.dead_ends.append(self.left)
                self._close()
            else:
                self._path.append(self._draw(last, last.choices))

    @property
    def _is_done(self) -> bool:
        return len(self.samples) >= self._wanted or self.left == 0

    def _draw(self, node: Node, choices: Choices) -> Node:
        """A continuation by its unsampled share."""
        stream = torch.tensor([self.draws], device="cpu")
        step = torch.tensor(len(self._path) - 1, device="cpu")
        place = int(rng.draw_seeded(node.unsampled(choices)[None], self._seed, stream, step))
        if place not in node.children:
            node.children[place] = self._grow(node, choices, place)
        return node.children[place]

    def _grow(self, node: Node, choices: Choices, place: int) -> Node:
        """The text with one more token."""
        token, device = choices.token(place), node.history.tokens.device
        history = node.history.append(torch.tensor([token], device=device))
        log_prob = choices.log_probs[place : place + 1]
        why, stopping = self._limits.finish(history, log_prob.to(device), node.stopping)
        share = float(choices.probs()[place])
        return Node(
            history=history,
            stopping=stopping,
            token=token,
            log_prob=float(log_prob),
            log_mass=node.log_mass + math.log(share),
            why=int(why),
        )

    def _close(self) -> None:
        """Sets the present draw's text aside, and begins another."""
        self._path[-1].left = 0.0
        for node in reversed(self._path[:-1]):
            if node.choices is not None:
                node.left = float(node.unsampled(node.choices).sum())
        self._path = [self._root]

    def _remembered(self) -> Memory:
        """What the processors remember before the logits of the text that waits."""
        after, memory = self._live
        before = self._path[-2] if len(self._path) > 1 else None
        if before is after:
            return memory
        if self._keeps and before is not None:
            return before.memory
        memory = self._processor.init(self._root.history)
        for node in self._path[:-1]:
            if node.logits is not None:
                _, memory = self._processor.apply(node.history, node.logits, memory)
        return memory


def texts_of(
    history: History, processor: LogitsProcessor, limits: Limits, seeds: Int64[Tensor, " batch"], wanted: int
) -> list[UnsampledTexts]:
    """Nothing sampled yet, of any prompt of a history with one row for each."""
    rows = torch.arange(len(history.tokens), device=history.tokens.device)
    return [
        UnsampledTexts(number, history.part(row), processor, limits, seed, wanted)
        for number, (row, seed) in enumerate(zip(rows[:, None], seeds.tolist(), strict=True))
    ]
