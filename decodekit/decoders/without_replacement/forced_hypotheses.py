"""Hypotheses that every sample must contain."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.validation import plain, read_ids
from decodekit.decoders.without_replacement.sampled_beams import Candidates, SampledBeams
from decodekit.errors import DecodekitError, DecodingError

IMPOSSIBLE = -1  # has no probability


def read_hypotheses(who: str, keep: object) -> tuple[tuple[int, ...], ...]:
    """One hypothesis per prompt, as tuples of ids. Raises unless each is a list of at least one id."""
    given = plain(keep)
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(map(_is_list, given)):
        raise ValueError(
            f"{who}: keep must be one list of ids, not empty, for each prompt, got {keep!r:.80}."
        )
    return tuple(read_ids(who, ids) for ids in given)


def _is_list(ids: object) -> bool:
    return isinstance(plain(ids), list | tuple) and len(plain(ids)) > 0


class ForcedHypotheses(NamedTuple):
    """The hypothesis of each prompt that its sample must contain."""

    # Its tokens, filled with 0: a finished hypothesis is token 0 among the `Candidates`.
    tokens: Int64[Tensor, "batch new"]
    lengths: Int64[Tensor, " batch"]
    beams: Int64[Tensor, " batch"]  # the beam that begins it; `IMPOSSIBLE` if it has no probability

    @classmethod
    def start(
        cls, who: str, keep: Sequence[Sequence[int]], history: History, limits: Limits
    ) -> "ForcedHypotheses":
        """The hypotheses before the first step; `keep` has one for each prompt of the run."""
        batch, device = history.batch, history.tokens.device
        if len(keep) != batch:
            raise DecodekitError(
                f"{who}: keep must have one hypothesis per prompt, got {len(keep)} for {batch} prompts."
            )
        new = limits.max_new_tokens
        if any(len(ids) > new or max(ids) >= limits.vocab for ids in keep):
            raise DecodekitError(
                f"{who}: a hypothesis to keep must have at most {new} tokens, with ids below {limits.vocab}, "
                f"got {keep!r:.200}."
            )
        tokens = torch.tensor([[*ids, *[0] * (new - len(ids))] for ids in keep], device=device)
        lengths = torch.tensor([len(ids) for ids in keep], device=device)
        tokens, lengths = history.own(tokens), history.own(lengths)
        return cls(tokens, lengths, torch.zeros_like(lengths))

    def candidate(self, step: Int64[Tensor, ""], candidates: Candidates) -> Int64[Tensor, " batch"]:
        """The flat number of the candidate that begins the hypothesis, or `IMPOSSIBLE`."""
        vocab = candidates.log_probs.shape[-1]
        token = self.tokens.index_select(1, step.view(1).clamp(max=self.tokens.shape[1] - 1))[:, 0]
        flat = self.beams.clamp(min=0) * vocab + token
        exists = candidates.log_probs.flatten(1).gather(1, flat[:, None])[:, 0] > -torch.inf
        return flat.masked_fill((self.beams == IMPOSSIBLE) | ~exists, IMPOSSIBLE)

    def after(
        self, chosen: Int64[Tensor, "batch beams"], forced: Int64[Tensor, " batch"]
    ) -> "ForcedHypotheses":
        """The hypotheses after a step that selected `chosen`, with the candidates `forced` among them."""
        beams = (chosen == forced[:, None]).long().argmax(-1)
        return self._replace(beams=beams.masked_fill(forced == IMPOSSIBLE, IMPOSSIBLE))

    def rank_first(
        self, values: Float64[Tensor, "batch beams"], sample: SampledBeams
    ) -> Float64[Tensor, "batch beams"]:
        """The values, with plus infinity for the forced hypotheses, so that they come first.

        Raises:
            DecodingError: If a hypothesis is not in its sample, not complete, or too long.
        """
        is_forced = self._is_forced(sample)
        if not bool(is_forced.any(-1).all()):
            missing = sample.history.prompt(int((~is_forced.any(-1)).int().argmax()))
            raise DecodingError(
                "decode: a hypothesis to keep must be one that the model and the processors can emit, up to "
                f"its end, and that of prompt {missing} is not."
            )
        return values.masked_fill(is_forced, torch.inf)

    def _is_forced(self, sample: SampledBeams) -> Bool[Tensor, "batch beams"]:
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        counts = columns < self.lengths[:, None, None]
        same = (sample.records.tokens == self.tokens[:, None]) | ~counts
        return same.all(-1) & (sample.lengths == self.lengths[:, None]) & sample.valid
