"""The hypotheses that a beam search has finished."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.limits import Limits
from decodekit.core.result import Decoded
from decodekit.decoders.beam.records import Entry, Records
from decodekit.errors import DecodingError


class Ending(NamedTuple):
    """What may just have ended: continuations of a prompt's live hypotheses.

    Attributes:
        enters: Which of them have ended and may enter the finished set.
        source_beams: The live hypothesis of its prompt that each continues.
        entry: What is written down about the new token.
        scores: What each is worth.
        why: What finished it.
    """

    enters: Bool[Tensor, "batch candidates"]
    source_beams: Int64[Tensor, "batch candidates"]
    entry: Entry
    scores: Float32[Tensor, "batch candidates"]
    finish_code: Int64[Tensor, "batch candidates"]


class Finished(NamedTuple):
    """Each prompt's finished hypotheses, best first; slots that are not used score minus infinity."""

    records: Records
    lengths: Int64[Tensor, "batch slots"]
    scores: Float32[Tensor, "batch slots"]
    finish_code: Int64[Tensor, "batch slots"]  # what finished them
    used: Bool[Tensor, "batch slots"]

    @classmethod
    def empty(cls, batch: int, slots: int, new: int, device: torch.device) -> "Finished":
        """None yet."""
        nothing = torch.zeros(batch, slots, dtype=torch.long, device=device)
        return cls(
            records=Records.empty(batch, slots, new, device),
            lengths=nothing,
            scores=empty_scores(batch, slots, device),
            finish_code=nothing.clone(),
            used=nothing.bool(),
        )

    def after(
        self, ending: Ending, live: Records, step: Int64[Tensor, ""]
    ) -> tuple["Finished", Float32[Tensor, " batch"]]:
        """The best of what there was and of what just ended.

        Args:
            ending: What may have ended.
            live: What is written down about the hypotheses that were continued.
            step: How many tokens they had.

        Returns:
            The new set, and the best score of what had to leave it or could not enter.
        """
        slots = self.scores.shape[1]
        new_scores = ending.scores.masked_fill(~ending.enters, -torch.inf)
        every = torch.cat([self.scores, new_scores], 1)
        # Stable: of tied hypotheses the first stays first, however many further steps are taken; and what is
        # worth minus infinity, which says that it is not allowed, comes after the empty slots.
        scores, chosen = (part[:, :slots] for part in every.sort(descending=True, stable=True))
        is_new = chosen >= slots
        candidate = (chosen - slots).clamp(min=0)
        # A hypothesis that just ended is a live one and one token more: [batch slots+beams]
        origin = torch.where(is_new, slots + ending.source_beams.gather(1, candidate), chosen)
        records = self.records.beside(live).take(origin)
        lengths = (step + 1).expand_as(ending.source_beams)
        finished = Finished(
            records=records.write(step, ending.entry.take(candidate), is_new),
            lengths=torch.cat([self.lengths, lengths], 1).gather(1, chosen),
            scores=scores,
            finish_code=torch.cat([self.finish_code, ending.finish_code], 1).gather(1, chosen),
            used=torch.cat([self.used, ending.enters], 1).gather(1, chosen),
        )
        return finished, every.scatter(1, chosen, -torch.inf).amax(-1)

    def decoded(self, limits: Limits, number: int) -> Decoded:
        """The best `number` of each prompt, best first; reads the device.

        Raises:
            DecodingError: If a score is not a number.
        """
        if self.scores.isnan().any():
            raise no_number()
        lengths = self.lengths[:, :number].masked_fill(~self.used[:, :number], 0)
        new = max(int(lengths.max()), 1)
        said = torch.arange(new, device=lengths.device) < lengths[..., None]
        tokens, log_probs, parents = (buffer[:, :number, :new] for buffer in self.records)
        valid = self.used[:, :number]
        return Decoded(
            tokens=tokens.masked_fill(~said, limits.pad_id),
            lengths=lengths,
            finish_reason=[
                [reason if is_valid else "missing" for reason, is_valid in zip(*row, strict=True)]
                for row in zip(limits.reasons(self.finish_code[:, :number]), valid.tolist(), strict=True)
            ],
            valid=valid,
            token_log_probs=log_probs.masked_fill(~said, 0.0),
            score=self.scores[:, :number],
            parents=parents.masked_fill(~said, -1),
            pad_id=limits.pad_id,
            finish_code=self.finish_code[:, :number],
        )


def no_number() -> DecodingError:
    """The error where a scorer has given what is not a number: it would be ranked above all others."""
    return DecodingError(
        "decode: a scorer must give every hypothesis a number, or minus infinity to what is not allowed, "
        "and gave NaN. Look at what it does with short and long texts, and with log-probabilities below 0."
    )


def empty_scores(batch: int, hyps: int, device: torch.device) -> Float32[Tensor, "batch hyps"]:
    """The scores of hypotheses that do not exist."""
    return torch.full((batch, hyps), -torch.inf, dtype=torch.float32, device=device)
