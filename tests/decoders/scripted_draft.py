"""A draft that proposes given tokens."""

from typing import Self

from torch import Tensor

import decodekit as dk


class Scripted(dk.Draft):
    """Proposes given tokens, round by round; then nothing.

    Args:
        rounds: For each round the tokens of every row.
        probs: The distributions that it reports.
        obedient: False proposes more than it was asked for.
    """

    def __init__(self, *rounds: list[list[int]], probs: Tensor | None = None, obedient: bool = True) -> None:
        self.rounds, self.probs, self.obedient = rounds, probs, obedient
        self.sequences: list[list[int]] = []

    @classmethod
    def around(cls, sequences: list[list[int]]) -> Self:
        """Proposes the next tokens of these sequences, with a mistake at a place that changes every round."""
        draft = cls()
        draft.sequences = sequences
        return draft

    def start(
        self,
        model: dk.Model,  # noqa: ARG002 - the contract's signature
        prompt: dk.Prompt,
        *,
        rows_per_prompt: int,
        capacity: int,  # noqa: ARG002
    ) -> dk.DraftSession:
        return _Session(self, len(prompt.tokens) * rows_per_prompt)


class _Session(dk.DraftSession):
    def __init__(self, draft: Scripted, rows: int) -> None:
        self.draft, self.round, self.lengths = draft, 0, [0] * rows

    def propose(self, emitted: list[list[int]], max_tokens: list[int], choose: object) -> dk.Proposal:  # noqa: ARG002
        self.lengths = [before + len(new) for before, new in zip(self.lengths, emitted, strict=True)]
        self.round += 1
        if self.draft.sequences:
            return dk.Proposal([self._mistaken(row, allowed) for row, allowed in enumerate(max_tokens)])
        rounds = self.draft.rounds
        rows = rounds[self.round - 1] if self.round <= len(rounds) else [[] for _ in max_tokens]
        if self.draft.obedient:
            rows = [row[:allowed] for row, allowed in zip(rows, max_tokens, strict=True)]
        return dk.Proposal(rows, self.draft.probs)

    def _mistaken(self, row: int, most: int) -> list[int]:
        tokens = self.draft.sequences[row][self.lengths[row] :][:most]
        place = (3 * self.round + row) % 4
        return [token ^ 1 if number == place else token for number, token in enumerate(tokens)]
