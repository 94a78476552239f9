"""What a model makes of a draft's proposals: the rule that keeps speculation lossless."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.decoders.speculative.draws import Draws, Purpose
from decodekit.decoders.speculative.speculative_row import SpeculativeRow
from decodekit.processors.base import LogitsProcessor


@dataclass(frozen=True)
class ProposalVerifier:
    """Says the tokens of a proposal as long as they are what the model would have said.

    Attributes:
        processor: What changes the model's scores.
        draws: Random numbers; None: the likeliest token is said, as greedy search does.
    """

    processor: LogitsProcessor
    draws: Draws | None

    def follow(
        self,
        line: SpeculativeRow,
        row: int,
        logits: Float32[Tensor, "places vocab"],
        drafted: list[int],
        drafts: Float32[Tensor, "columns vocab"] | None,
    ) -> tuple[SpeculativeRow, int]:
        """The line with the accepted tokens and one more, and how many were accepted.

        Args:
            line: The hypothesis.
            row: Its number in the batch.
            logits: The model's for each drafted token, and for the one after them.
            drafted: The proposed tokens.
            drafts: The distributions they were drawn from; None: they were not drawn.
        """
        for number, own in enumerate(logits[:, None]):
            line, scores = line.score(self.processor, own)
            guess = drafted[number] if number < len(drafted) else None
            draft = None if drafts is None or guess is None else drafts[number : number + 1]
            token = self._token(scores, guess, draft, row, line.said)
            line = line.emit(token, scores)
            accepted = guess is not None and int(token) == guess
            if line.finished or not accepted:
                return line, number + accepted
        return line, len(drafted)

    def _token(
        self,
        scores: Float32[Tensor, "1 vocab"],
        guess: int | None,
        draft: Float32[Tensor, "1 vocab"] | None,
        row: int,
        step: int,
    ) -> Int64[Tensor, " 1"]:
        """What the model says: the guess, if it may."""
        if self.draws is None:
            return scores.argmax(-1)
        probs = scores.softmax(-1).double()
        if guess is not None:
            uniform = self.draws.uniform(probs, row, step, Purpose.ACCEPT)
            chance = torch.ones_like(uniform) if draft is None else draft[:, guess].double()
            if bool(uniform * chance < probs[:, guess]):  # with probability min(1, p / q)
                return torch.full_like(scores.argmax(-1), guess)
            probs = residual(probs, guess, draft)
        return self.draws.tokens(probs, [row], [step], Purpose.OWN)


def residual(probs: Tensor, guess: int, draft: Float32[Tensor, "1 vocab"] | None) -> Tensor:
    r"""What is left to draw from after a refusal, $\max(0, p - q)$, not normalized."""
    if draft is None:  # all of q is on the guess
        return probs.index_fill(-1, torch.tensor([guess], device=probs.device), 0.0)
    left = (probs - draft.double()).clamp(min=0)
    # Where p and q are the same but for rounding there may be nothing: then p itself is as good.
    return torch.where(left.sum(-1, keepdim=True) > 0, left, probs)
