"""Verification of proposals: the acceptance rule that makes speculative decoding lossless."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.decoders.independent_row import IndependentRow
from decodekit.decoders.speculative.draws import Draws, Purpose
from decodekit.processors.base import LogitsProcessor


@dataclass(frozen=True)
class ProposalVerifier:
    """Emits the accepted tokens of a proposal, and one more from the model."""

    processor: LogitsProcessor
    draws: Draws | None  # random numbers; None: a token is accepted if it is the argmax

    def verify(
        self,
        row: IndependentRow,
        number: int,
        logits: Float32[Tensor, "places vocab"],
        proposed: list[int],
        draft_probs: Float32[Tensor, "columns vocab"] | None,
    ) -> tuple[IndependentRow, int]:
        """The row after the accepted tokens and one more, and how many were accepted.

        Args:
            number: The index of the row in the batch.
            logits: The model's logits for each proposed token, and for the one after them.
            proposed: The proposed tokens.
            draft_probs: The distributions that they were drawn from; None if they were not drawn.
        """
        for place, target in enumerate(logits[:, None]):
            row, scores = row.process(self.processor, target)
            guess = proposed[place] if place < len(proposed) else None
            draft = None if draft_probs is None or guess is None else draft_probs[place : place + 1]
            token = self._token(scores, guess, draft, number, row.length)
            row = row.emit(token, scores)
            accepted = guess is not None and int(token) == guess
            if row.finished or not accepted:
                return row, place + accepted
        return row, len(proposed)

    def _token(
        self,
        scores: Float32[Tensor, "1 vocab"],
        guess: int | None,
        draft: Float32[Tensor, "1 vocab"] | None,
        number: int,
        step: int,
    ) -> Int64[Tensor, " 1"]:
        """The next token: the guess if it is accepted."""
        if self.draws is None:
            return scores.argmax(-1)
        probs = scores.softmax(-1).double()
        if guess is not None:
            uniform = self.draws.uniform(probs, number, step, Purpose.ACCEPT)
            guess_prob = torch.ones_like(uniform) if draft is None else draft[:, guess].double()
            if bool(uniform * guess_prob < probs[:, guess]):  # with probability min(1, p / q)
                return torch.full_like(scores.argmax(-1), guess)
            probs = residual_probs(probs, guess, draft)
        return self.draws.tokens(probs, [number], [step], Purpose.TARGET)


def residual_probs(probs: Tensor, guess: int, draft: Float32[Tensor, "1 vocab"] | None) -> Tensor:
    r"""The distribution after a refusal, $\max(0, p - q)$, not normalized."""
    if draft is None:  # q is 1 for the guess
        return probs.index_fill(-1, torch.tensor([guess], device=probs.device), 0.0)
    residual = (probs - draft.double()).clamp(min=0)
    # Where p and q differ by rounding only, the residual may be 0: then p itself is as good.
    return torch.where(residual.sum(-1, keepdim=True) > 0, residual, probs)
