"""What a processor meets in the middle of a run, for `processors.py`."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

import decodekit as dk
from decodekit.core.history import Source

OTHERS = 16  # last tokens of each row


@dataclass(frozen=True)
class Setting:
    """What a processor meets in the middle of a run.

    Attributes:
        tokens: All the text, from 1,000 ids, so that n-grams come again.
        others: The same with other last tokens, so that no step finds what the step before has worked out.
        scores: Random logits.
        prompt: Columns of the prompt.
        capacity: Columns of the history.
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
        """A setting of some size."""
        generator = torch.Generator().manual_seed(seed)
        ids = min(vocab, 1000)
        tokens = torch.randint(0, ids, (rows, prompt + said), generator=generator) * (vocab // ids)
        others = tokens.expand(OTHERS, -1, -1).clone()
        others[..., -1] = torch.randint(0, ids, (OTHERS, rows), generator=generator) * (vocab // ids)
        scores = 3 * torch.randn(rows, vocab, generator=generator)
        return cls(tokens.to(device), others.to(device), scores.to(device), prompt, prompt + said + to_come)

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.tokens)

    @property
    def vocab(self) -> int:
        """How many tokens can be said."""
        return self.scores.shape[1]

    @property
    def length(self) -> int:
        """Tokens of every row."""
        return self.tokens.shape[1]

    @property
    def source(self) -> Int64[Tensor, "rows source"]:
        """What an encoder has read: the prompt."""
        return self.tokens[:, : self.prompt]

    def history(self) -> dk.History:
        """At the prompt's end."""
        mask = torch.ones_like(self.source, dtype=torch.bool)
        return dk.Prompt(self.source, mask, Source(self.source, mask)).history(self.capacity, 1)

    def at(self, ids: int, length: int = 1) -> list[list[int]]:
        """Sequences that begin as the text might."""
        starts = range(0, ids * length, length)
        return [
            [(start + step) * (self.vocab // 1000 or 1) % self.vocab for step in range(length)]
            for start in starts
        ]
