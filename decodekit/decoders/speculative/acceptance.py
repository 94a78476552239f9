"""What speculative decoding found out about its draft."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Acceptance:
    """How good a draft was: what `Speculative` leaves in `Decoded.report`.

    Attributes:
        drafted: Tokens that were proposed for each hypothesis.
        accepted: Those of them that it says.
        passes: Forward passes of the model that each hypothesis took part in, after that over the prompt.
        judged_at: Of all hypotheses together, how often the model got to judge the n-th token of a proposal:
            those after a refused one, or after the end, are not looked at.
        accepted_at: How many of these it accepted.

    Example:
        >>> model = dk.testing.HashModel(9)
        >>> draft = dk.DraftModel(model)
        >>> dk.decode(model, [[1]], dk.Speculative(draft, tokens=3), max_new_tokens=8).report.passes
        tensor([[2]])
    """

    drafted: Int64[Tensor, "batch hyps"]
    accepted: Int64[Tensor, "batch hyps"]
    passes: Int64[Tensor, "batch hyps"]
    judged_at: Int64[Tensor, " tokens"]
    accepted_at: Int64[Tensor, " tokens"]

    @property
    def rate(self) -> Float32[Tensor, "batch hyps"]:
        """The share of proposed tokens that were accepted; 0 where none were proposed."""
        return self.accepted / self.drafted.clamp(min=1)

    @property
    def mean_length(self) -> Float32[Tensor, "batch hyps"]:
        """Accepted tokens a pass; with every pass comes one more, of the model's own. 0 without a pass."""
        return self.accepted / self.passes.clamp(min=1)

    @property
    def rate_at(self) -> Float32[Tensor, " tokens"]:
        """Of the tokens in each place of a proposal that were judged, the share that was accepted."""
        return self.accepted_at / self.judged_at.clamp(min=1)

    def __repr__(self) -> str:
        drafted, accepted, passes = (int(part.sum()) for part in (self.drafted, self.accepted, self.passes))
        return f"Acceptance(drafted={drafted}, accepted={accepted}, passes={passes})"


class Tally:
    """Counts while a run goes on.

    Args:
        rows: Hypotheses, of all prompts together.
        most: Proposed tokens a pass at most.
    """

    def __init__(self, rows: int, most: int) -> None:
        self.rounds = 0
        self._drafted, self._accepted, self._passes = [0] * rows, [0] * rows, [0] * rows
        self._judged_at, self._accepted_at = [0] * most, [0] * most

    def add(
        self, drafted: list[list[int]], accepted: list[int], said: list[list[int]], passed: list[bool]
    ) -> None:
        """Counts a round.

        Args:
            drafted: What was proposed for each row.
            accepted: How many of these were accepted.
            said: What each row has said.
            passed: Which rows took part in a pass of the model.
        """
        self.rounds += 1
        for row, (proposed, number) in enumerate(zip(drafted, accepted, strict=True)):
            self._drafted[row] += len(proposed)
            self._accepted[row] += number
            self._passes[row] += passed[row]
            for place in range(min(len(proposed), len(said[row]))):
                self._judged_at[place] += 1
                self._accepted_at[place] += place < number

    def report(self, hypotheses: int) -> Acceptance:
        """What was counted, `hypotheses` rows a prompt."""
        return Acceptance(
            drafted=torch.tensor(self._drafted).view(-1, hypotheses),
            accepted=torch.tensor(self._accepted).view(-1, hypotheses),
            passes=torch.tensor(self._passes).view(-1, hypotheses),
            judged_at=torch.tensor(self._judged_at),
            accepted_at=torch.tensor(self._accepted_at),
        )
