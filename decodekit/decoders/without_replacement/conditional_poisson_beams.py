"""Conditional Poisson stochastic beams."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from typing_extensions import override

from decodekit import rng
from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.result import Decoded
from decodekit.core.validation import at_least, check_fields, plain, read_ids, set_fields, shown
from decodekit.decoders.base import Decoder, Selection
from decodekit.decoders.prompt_seeds import own_seeds, read_seeds
from decodekit.decoders.without_replacement.conditional_poisson import (
    Levels,
    draw_set,
    log_inclusion,
    polynomials,
)
from decodekit.decoders.without_replacement.inclusion import Inclusion
from decodekit.decoders.without_replacement.sampled_beams import BeamContinuations, SampledBeams
from decodekit.errors import DecodekitError, DecodingError
from decodekit.processors.base import Scores

IMPOSSIBLE = -1  # a hypothesis without probability


class ForcedHypotheses(NamedTuple):
    """The hypothesis of each prompt that its sample must contain."""

    # Its tokens, filled with 0: a finished hypothesis is token 0 among the `BeamContinuations`.
    tokens: Int64[Tensor, "batch new"]
    lengths: Int64[Tensor, " batch"]
    beams: Int64[Tensor, " batch"]  # the beam that begins it; `IMPOSSIBLE` if it has no probability

    @classmethod
    def start(cls, keep: Sequence[Sequence[int]], history: History, limits: Limits) -> "ForcedHypotheses":
        """The hypotheses before the first step; `keep` has one for each prompt of the call."""
        who, batch, device = "ConditionalPoissonBeams", history.batch, history.tokens.device
        if len(keep) != batch:
            raise DecodekitError(
                f"{who}: keep must have one hypothesis per prompt, got {len(keep)} for {batch} prompts."
            )
        new = limits.max_new_tokens
        if any(len(ids) > new or max(ids) >= limits.vocab for ids in keep):
            raise DecodekitError(
                f"{who}: a hypothesis to keep must have at most {new} tokens, with ids below {limits.vocab}, "
                f"got {shown(keep, 200)}."
            )
        tokens = torch.tensor([[*ids, *[0] * (new - len(ids))] for ids in keep], device=device)
        lengths = torch.tensor([len(ids) for ids in keep], device=device)
        tokens, lengths = history.to_prompts(tokens), history.to_prompts(lengths)
        return cls(tokens, lengths, torch.zeros_like(lengths))

    def candidate(self, step: Int64[Tensor, ""], candidates: BeamContinuations) -> Int64[Tensor, " batch"]:
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
        """The values, infinite for the forced hypotheses. Raises if one is not in its sample, complete."""
        columns = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        ignored = columns >= self.lengths[:, None, None]
        same = ((sample.records.tokens == self.tokens[:, None]) | ignored).all(-1)
        is_forced = same & (sample.lengths == self.lengths[:, None]) & sample.valid
        if not bool(is_forced.any(-1).all()):
            missing = sample.history.prompt(int((~is_forced.any(-1)).int().argmax()))
            raise DecodingError(
                "decode: the model and the processors cannot emit the hypothesis to keep of prompt "
                f"{missing} up to its end. Pass one that they can emit."
            )
        return values.masked_fill(is_forced, torch.inf)


class ConditionalPoissonMemory(NamedTuple):
    """The memory of conditional Poisson beams."""

    log_inclusion: Float64[Tensor, "batch beams"]  # summed over the steps
    forced: ForcedHypotheses | None
    seeds: Int64[Tensor, " batch"]


@final
@dataclass(frozen=True)
class ConditionalPoissonBeams(Decoder[SampledBeams, Inclusion]):
    r"""Samples `beams` different hypotheses: at every step a set of beams, by a product of odds.

    A beam search that samples its beams. From all one-token continuations of its beams (a finished hypothesis
    stays as it is) it draws a set $S$ of `beams` with probability

    $$P(S) \propto \prod_{y \in S} \frac{p(y)}{1 - p(y)},$$

    the conditional Poisson design, under which the inclusion probability of $y$ is about proportional to the
    probability $p(y)$ of its tokens so far. The sets are exact, over the whole vocabulary.

    $p$ is the model's distribution after the processors, every step normalized, up to `max_new_tokens`: the
    distribution of `Sample`. Reported log-probabilities are the model's own, as everywhere. Hypotheses are in
    the order of $p$, likeliest first; their `score` is $\log p$. Where fewer hypotheses exist than beams, all
    are returned. A beam with every next token banned keeps its place, and is returned as not valid.

    `Decoded.report` is an [`Inclusion`][decodekit.Inclusion]. Its probabilities are products over the steps
    of the exact inclusion probability *given the beams of the step before*. Estimates are unbiased.
    The probabilities vary with the other beams. The Horvitz-Thompson estimator needs their average over
    samples that contain the hypothesis. `keep` forces the hypothesis into the sample, so further calls give
    an importance sampling estimate of this average (see the second example).

    Args:
        beams: Hypotheses to sample, at least 1. The prompt is computed once.
        keep: For every prompt the ids of a complete hypothesis, up to its end id or the limit, that is forced
            into the sample. It comes first, with its inclusion probability. No other inclusion probability,
            and no estimate, is valid then.
        generator: The stream that a seed for each prompt is drawn from; None is torch's global one.
        seeds: One integer per prompt, instead of a generator: then a prompt's hypotheses do not depend on the
            batch.

    Raises:
        ValueError: If `beams` is not an integer of at least 1, if `keep` is not a list of ids for each
            prompt, if both `generator` and `seeds` are given, or if a seed does not fit 64 bits.
        DecodekitError: In a run, if the number of seeds or hypotheses to keep differs from the batch size.
        DecodingError: In a run, if some prompt has dead ends only, or if a hypothesis to keep has no
            probability.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon a", dk.ConditionalPoissonBeams(3, seeds=[7]),
        ...                 max_new_tokens=4)
        >>> forced = dk.ConditionalPoissonBeams(3, keep=out.hypotheses()[0][:1] * 20, seeds=range(20))
        >>> again = dk.decode(dk.load(), ["Once upon a"] * 20, forced, max_new_tokens=4)
        >>> inclusion = again.report.probabilities[:, 0].mean()

    Source:
        Meister, Amini, Vieira & Cotterell, 2021, https://arxiv.org/abs/2109.11034.

    Hugging Face:
        None.
    """

    beams: int
    _: KW_ONLY
    keep: Sequence[Sequence[int]] | None = None
    generator: torch.Generator | None = None
    seeds: Sequence[int] | Int64[Tensor, " batch"] | None = None

    batch_independent = True

    def __post_init__(self) -> None:
        check_fields(self, beams=at_least(1))
        read_seeds(self)
        keep = None if self.keep is None else _read_hypotheses("ConditionalPoissonBeams", self.keep)
        set_fields(self, beams=int(self.beams), keep=keep)

    @property
    @override
    def rows_per_prompt(self) -> int:
        return self.beams

    @override
    def init(self, history: History, limits: Limits) -> SampledBeams:
        state = SampledBeams.start(history, limits, self.beams)
        seeds = own_seeds(self, history)
        forced = None if self.keep is None else ForcedHypotheses.start(self.keep, history, limits)
        memory = ConditionalPoissonMemory(torch.zeros_like(state.log_probs), forced, seeds)
        return state._replace(memory=memory)

    @override
    def step(self, scores: Scores, state: SampledBeams) -> tuple[SampledBeams, Selection]:
        memory: ConditionalPoissonMemory = state.memory
        candidates = state.expand(scores)
        vocab = candidates.log_probs.shape[-1]
        log_probs = candidates.log_probs.flatten(1)
        odds = log_odds(log_probs)
        size = (log_probs > -torch.inf).sum(-1).clamp(max=self.beams)
        levels = polynomials(odds, self.beams)
        if memory.forced is None:
            forced = None
            drawn = draw_set(levels, size, _uniform(levels, memory.seeds, state.step))
        else:
            forced = memory.forced.candidate(state.step, candidates)
            is_forced = torch.arange(odds.shape[1], device=odds.device) == forced[:, None]
            others = polynomials(odds.masked_fill(is_forced, -torch.inf), self.beams)
            rest = (size - (forced >= 0).long()).clamp(min=0)
            drawn = draw_set(others, rest, _uniform(others, memory.seeds, state.step))
            drawn = drawn[:, : odds.shape[1]] | is_forced
        best = log_probs.masked_fill(~drawn[:, : odds.shape[1]], -torch.inf).topk(self.beams)
        chosen, exists = best.indices, best.values > -torch.inf
        # A finished sample is drawn again with probability 1, up to rounding.
        included = log_inclusion(levels, size, chosen).masked_fill(state.finished[:, None], 0.0)
        included = torch.where(exists, memory.log_inclusion.gather(1, chosen // vocab) + included, 0.0)
        after, selection = state.select(chosen, exists, candidates)
        memory = memory._replace(log_inclusion=included)
        if memory.forced is not None and forced is not None:
            memory = memory._replace(forced=memory.forced.after(chosen, forced))
        return after._replace(memory=memory), selection

    @override
    def stable_prefix(self, state: SampledBeams) -> list[list[list[int]]]:
        # A forced hypothesis comes first at the end, so nothing is stable before.
        return state.stable_prefix() if self.keep is None else []

    @override
    def finished(self, state: SampledBeams) -> Bool[Tensor, " batch"]:
        return state.finished

    @override
    def finalize(self, state: SampledBeams) -> Decoded[Inclusion]:
        memory: ConditionalPoissonMemory = state.memory
        rank = state.log_probs
        if memory.forced is not None:
            rank = memory.forced.rank_first(rank, state)
        return state.decoded(state.log_probs, rank, memory.log_inclusion)


def _uniform(
    levels: Levels, seeds: Int64[Tensor, " batch"], step: Int64[Tensor, ""]
) -> list[Float64[Tensor, "batch _parents"]]:
    """A uniform number for every inner node: a function of seed, step, level and node."""
    return [
        rng.uniform_several(seeds, torch.full_like(seeds, height), step, level.shape[1] // 2)
        for height, level in enumerate(levels[:-1])
    ]


def _read_hypotheses(who: str, keep: object) -> tuple[tuple[int, ...], ...]:
    """One hypothesis per prompt, as tuples of ids. Raises unless each is a list of at least one id."""
    given = plain(keep)
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(map(_has_ids, given)):
        raise ValueError(
            f"{who}: keep must be one list of ids, not empty, for each prompt, got {shown(keep)}."
        )
    return tuple(read_ids(who, ids) for ids in given)


def _has_ids(ids: object) -> bool:
    return isinstance(plain(ids), list | tuple) and len(plain(ids)) > 0


def log_odds(log_probs: Float64[Tensor, "batch candidates"]) -> Float64[Tensor, "batch candidates"]:
    r"""$\log (p / (1 - p))$; a $p$ of 1 counts as one rounding error less."""
    return log_probs - torch.log(-torch.expm1(log_probs.clamp(max=-(2.0**-53))))
