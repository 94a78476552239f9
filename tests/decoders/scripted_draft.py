"""A draft that proposes what it was told to."""

from typing import Self

from torch import Tensor

import decodekit as dk


class Scripted(dk.Draft):
    """Proposes given tokens, round by round; then nothing.

    Args:
        rounds: For each round the tokens of every row.
        probs: What it says they were drawn from.
        honest: Whether it keeps to what it was asked for.
    """

    def __init__(self, *rounds: list[list[int]], probs: Tensor | None = None, honest: bool = True) -> None:
        self.rounds, self.probs, self.honest = rounds, probs, honest
        self.texts: list[list[int]] = []

    @classmethod
    def around(cls, texts: list[list[int]]) -> Self:
        """Proposes what these texts say next, with a mistake at a place that changes from round to round."""
        draft = cls()
        draft.texts = texts
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
        self.draft, self.round, self.said = draft, 0, [0] * rows

    def propose(self, said: list[list[int]], most: list[int], choose: object) -> dk.Proposal:  # noqa: ARG002
        self.said = [before + len(new) for before, new in zip(self.said, said, strict=True)]
        self.round += 1
        if self.draft.texts:
            return dk.Proposal([self._mistaken(row, allowed) for row, allowed in enumerate(most)])
        rounds = self.draft.rounds
        rows = rounds[self.round - 1] if self.round <= len(rounds) else [[] for _ in most]
        if self.draft.honest:
            rows = [row[:allowed] for row, allowed in zip(rows, most, strict=True)]
        return dk.Proposal(rows, self.draft.probs)

    def _mistaken(self, row: int, most: int) -> list[int]:
        tokens = self.draft.texts[row][self.said[row] :][:most]
        place = (3 * self.round + row) % 4
        return [token ^ 1 if number == place else token for number, token in enumerate(tokens)]
