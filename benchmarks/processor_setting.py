"""The inputs of a processor in the middle of a run, for `processors.py`."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

import decodekit as dk
from decodekit.core.history import Source

OTHERS = 16  # number of different last tokens per row


@dataclass(frozen=True)
class Setting:
    """The inputs of a processor in the middle of a run.

    Attributes:
        tokens: The whole text, of 1,000 different ids, so that n-grams repeat.
        others: The same text with other last tokens, so that no step can reuse results of the step before.
        scores: Random logits.
        prompt: Number of columns of the prompt.
        capacity: Number of columns of the history.
    """

    tokens: Int64[Tensor, "rows length"]
    others: Int64[Tensor, "others rows length"]
    scores: Float32[Tensor, "rows vocab"]
    prompt: int
    capacity: int

    @classmethod
    def random(
        cls, rows: int, vocab: int, prompt: int, said: int, to_come: int, *, device: str, seed: int
    ) -> "Setting":
        """A random setting of the given sizes."""
        generator = torch.Generator().manual_seed(seed)
        ids = min(vocab, 1000)
        tokens = torch.randint(0, ids, (rows, prompt + said), generator=generator) * (vocab // ids)
        others = tokens.expand(OTHERS, -1, -1).clone()
        others[..., -1] = torch.randint(0, ids, (OTHERS, rows), generator=generator) * (vocab // ids)
        scores = 3 * torch.randn(rows, vocab, generator=generator)
        return cls(tokens.to(device), others.to(device), scores.to(device), prompt, prompt + said + to_come)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.tokens)

    @property
    def vocab(self) -> int:
        """Size of the vocabulary."""
        return self.scores.shape[1]

    @property
    def length(self) -> int:
        """Number of tokens of every row."""
        return self.tokens.shape[1]

    @property
    def source(self) -> Int64[Tensor, "rows source"]:
        """The source that an encoder has read: the prompt."""
        return self.tokens[:, : self.prompt]

    def history(self) -> dk.History:
        """The history at the end of the prompt."""
        mask = torch.ones_like(self.source, dtype=torch.bool)
        return dk.Prompt(self.source, mask, Source(self.source, mask)).history(self.capacity, 1)

    def at(self, ids: int, length: int = 1) -> list[list[int]]:
        """Sequences of ids that can occur in the text."""
        starts = range(0, ids * length, length)
        return [
            [(start + step) * (self.vocab // 1000 or 1) % self.vocab for step in range(length)]
            for start in starts
        ]
