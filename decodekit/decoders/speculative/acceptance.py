"""The acceptance rate of a draft."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Acceptance:
    """Acceptance statistics of a draft: `Decoded.report` of `Speculative`.

    Attributes:
        drafted: Proposed tokens of each hypothesis.
        accepted: Accepted tokens of these.
        passes: Forward passes of the model that each hypothesis took part in, after the one over the prompt.
        verified_at: Number of verified n-th tokens of proposals, over all hypotheses. Tokens after a refused
            one, or after the end, are not verified.
        accepted_at: Number of accepted n-th tokens.

    Example:
        >>> model = dk.testing.HashModel(9)
        >>> draft = dk.DraftModel(model)
        >>> dk.decode(model, [[1]], dk.Speculative(draft, tokens=3), max_new_tokens=8).report.passes
        tensor([[2]])
    """

    drafted: Int64[Tensor, "batch hyps"]
    accepted: Int64[Tensor, "batch hyps"]
    passes: Int64[Tensor, "batch hyps"]
    verified_at: Int64[Tensor, " tokens"]
    accepted_at: Int64[Tensor, " tokens"]

    @property
    def rate(self) -> Float32[Tensor, "batch hyps"]:
        """The fraction of proposed tokens that were accepted; 0 where none were proposed."""
        return self.accepted / self.drafted.clamp(min=1)

    @property
    def mean_length(self) -> Float32[Tensor, "batch hyps"]:
        """Accepted tokens per pass, without the token that the model adds itself. 0 without a pass."""
        return self.accepted / self.passes.clamp(min=1)

    @property
    def rate_at(self) -> Float32[Tensor, " tokens"]:
        """The fraction of verified tokens that were accepted, by their place in the proposal."""
        return self.accepted_at / self.verified_at.clamp(min=1)

    def __repr__(self) -> str:
        drafted, accepted, passes = (int(part.sum()) for part in (self.drafted, self.accepted, self.passes))
        return f"Acceptance(drafted={drafted}, accepted={accepted}, passes={passes})"


class AcceptanceCounter:
    """Counts proposed and accepted tokens during a run."""

    def __init__(self, rows: int, max_tokens: int) -> None:
        self.rounds = 0
        self._drafted, self._accepted, self._passes = [0] * rows, [0] * rows, [0] * rows
        self._verified_at, self._accepted_at = [0] * max_tokens, [0] * max_tokens

    def add(
        self, proposed: list[list[int]], accepted: list[int], emitted: list[list[int]], passed: list[bool]
    ) -> None:
        """Count a round; `passed` is True for rows that took part in a pass of the model."""
        self.rounds += 1
        for row, (tokens, number) in enumerate(zip(proposed, accepted, strict=True)):
            self._drafted[row] += len(tokens)
            self._accepted[row] += number
            self._passes[row] += passed[row]
            for place in range(min(len(tokens), len(emitted[row]))):
                self._verified_at[place] += 1
                self._accepted_at[place] += place < number

    def report(self, hypotheses: int) -> Acceptance:
        """The statistics, `hypotheses` rows per prompt."""
        return Acceptance(
            drafted=torch.tensor(self._drafted).view(-1, hypotheses),
            accepted=torch.tensor(self._accepted).view(-1, hypotheses),
            passes=torch.tensor(self._passes).view(-1, hypotheses),
            verified_at=torch.tensor(self._verified_at),
            accepted_at=torch.tensor(self._accepted_at),
        )
