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


def count_round(
    proposed: list[list[int]], accepted: list[int], emitted: list[list[int]], passed: list[bool]
) -> list[list[int]]:
    """Drafted, accepted and verified tokens of every row in a round, and the passes it took part in."""
    drafted = [len(tokens) for tokens in proposed]
    verified = [min(number, len(tokens)) for number, tokens in zip(drafted, emitted, strict=True)]
    return [drafted, accepted, verified, [int(is_read) for is_read in passed]]


def summarize(rounds: list[list[list[int]]], max_tokens: int, hypotheses: int) -> Acceptance:
    """The statistics of counted rounds, `hypotheses` rows per prompt."""
    counts = torch.tensor(rounds)  # [rounds 4 rows]
    drafted, accepted, _, passes = counts.sum(0).view(4, -1, hypotheses)
    is_accepted, is_verified = (counts[:, number, :, None] > torch.arange(max_tokens) for number in (1, 2))
    return Acceptance(
        drafted=drafted,
        accepted=accepted,
        passes=passes,
        verified_at=is_verified.sum((0, 1)),
        accepted_at=(is_accepted & is_verified).sum((0, 1)),
    )
