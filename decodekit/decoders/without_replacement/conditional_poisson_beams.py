"""Conditional Poisson stochastic beams."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor
from typing_extensions import override

from decodekit import rng
from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.result import Decoded
from decodekit.core.validation import at_least, check_fields, set_fields
from decodekit.decoders.base import Decoder, Selection
from decodekit.decoders.prompt_seeds import own_seeds, read_seeds
from decodekit.decoders.without_replacement.conditional_poisson import (
    Levels,
    draw_set,
    log_inclusion,
    polynomials,
)
from decodekit.decoders.without_replacement.forced_hypotheses import ForcedHypotheses, read_hypotheses
from decodekit.decoders.without_replacement.inclusion import Inclusion
from decodekit.decoders.without_replacement.sampled_beams import SampledBeams


class ConditionalPoissonState(NamedTuple):
    """The state of conditional Poisson beams."""

    sample: SampledBeams
    log_inclusion: Float64[Tensor, "batch beams"]  # summed over the steps
    forced: ForcedHypotheses | None  # hypotheses that every sample must contain
    seeds: Int64[Tensor, " batch"]
    model_scores: Float32[Tensor, "rows vocab"] | None = None  # of the current step

    @property
    def history(self) -> History:
        """The tokens of every row."""
        return self.sample.history

    @property
    def done(self) -> Bool[Tensor, ""]:
        """True once every hypothesis is finished."""
        return self.sample.done


@final
@dataclass(frozen=True)
class ConditionalPoissonBeams(Decoder[ConditionalPoissonState, Inclusion]):
    r"""Samples `beams` different hypotheses: at every step a set of beams, by a product of odds.

    A beam search that samples its beams. From all one-token continuations of its beams (a finished hypothesis
    is its own) it draws a set $S$ of `beams` with probability

    $$P(S) \propto \prod_{y \in S} \frac{p(y)}{1 - p(y)},$$

    the conditional Poisson design, under which the inclusion probability of $y$ is about proportional to the
    probability $p(y)$ of its tokens so far. The sets are exact, over the whole vocabulary.

    $p$ is the model's distribution after the processors, every step normalized, up to `max_new_tokens`: the
    distribution of `Sample`. Reported log-probabilities are the model's own, as everywhere. Hypotheses are in
    the order of $p$, likeliest first; their `score` is $\log p$. Where fewer hypotheses exist than beams, all
    are returned. A beam whose every next token is banned keeps its place, and is returned as not valid.

    `Decoded.report` is an [`Inclusion`][decodekit.Inclusion]. Its probabilities are products over the steps
    of the exact inclusion probability *given the beams of the step before*: estimates from them are unbiased,
    and they vary with the other beams. The inclusion probability over all samples, for the Horvitz-Thompson
    estimator, is their average over samples that contain the hypothesis, which `keep` forces: an importance
    sampling estimate from any number of further runs (see the second example).

    Args:
        beams: Hypotheses to sample, at least 1. The prompt is computed once.
        keep: For every prompt the ids of a complete hypothesis, up to its end id or the limit, that is forced
            into the sample. It comes first, with its inclusion probability; the inclusion probabilities of
            the others, and estimates, are not valid then.
        generator: The stream that a seed for each prompt is drawn from; None is torch's global one.
        seeds: One integer per prompt, instead of a generator: then a prompt's hypotheses do not depend on the
            batch.

    Raises:
        ValueError: If `beams` is not an integer of at least 1, if `keep` is not a list of ids for each
            prompt, if both `generator` and `seeds` are given, or if a seed does not fit 64 bits.
        DecodekitError: In a run, if there are not as many seeds, or hypotheses to keep, as prompts.
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
        seeds = read_seeds("ConditionalPoissonBeams", self.generator, self.seeds)
        keep = None if self.keep is None else read_hypotheses("ConditionalPoissonBeams", self.keep)
        set_fields(self, beams=int(self.beams), seeds=seeds, keep=keep)

    @property
    @override
    def rows_per_prompt(self) -> int:
        return self.beams

    @override
    def init(self, history: History, limits: Limits) -> ConditionalPoissonState:
        sample = SampledBeams.start(history, limits, self.beams)
        seeds = own_seeds("ConditionalPoissonBeams", self.generator, self.seeds, history)
        forced = None
        if self.keep is not None:
            forced = ForcedHypotheses.start("ConditionalPoissonBeams", self.keep, history, limits)
        return ConditionalPoissonState(sample, torch.zeros_like(sample.log_probs), forced, seeds)

    @override
    def step(
        self, scores: Float32[Tensor, "rows vocab"], state: ConditionalPoissonState
    ) -> tuple[ConditionalPoissonState, Selection]:
        candidates = state.sample.expand(scores)
        vocab = candidates.log_probs.shape[-1]
        log_probs = candidates.log_probs.flatten(1)
        odds = log_odds(log_probs)
        size = (log_probs > -torch.inf).sum(-1).clamp(max=self.beams)
        levels = polynomials(odds, self.beams)
        if state.forced is None:
            forced = None
            drawn = draw_set(levels, size, self._uniform(levels, state))
        else:
            forced = state.forced.candidate(state.sample.step, candidates)
            is_forced = torch.arange(odds.shape[1], device=odds.device) == forced[:, None]
            others = polynomials(odds.masked_fill(is_forced, -torch.inf), self.beams)
            rest = (size - (forced >= 0).long()).clamp(min=0)
            drawn = draw_set(others, rest, self._uniform(others, state))[:, : odds.shape[1]] | is_forced
        best = log_probs.masked_fill(~drawn[:, : odds.shape[1]], -torch.inf).topk(self.beams)
        chosen, exists = best.indices, best.values > -torch.inf
        # A finished sample is drawn again with probability 1, up to rounding.
        included = log_inclusion(levels, size, chosen).masked_fill(state.sample.finished[:, None], 0.0)
        before = state.log_inclusion.gather(1, chosen // vocab)
        sample, selection = state.sample.select(chosen, exists, candidates, state.model_scores)
        log_inclusion_sum = torch.where(exists, before + included, 0.0)
        after = state._replace(sample=sample, log_inclusion=log_inclusion_sum, model_scores=None)
        if state.forced is not None and forced is not None:
            after = after._replace(forced=state.forced.after(chosen, forced))
        return after, selection

    @staticmethod
    def _uniform(levels: Levels, state: ConditionalPoissonState) -> list[Float64[Tensor, "batch _parents"]]:
        """A uniform number for every inner node: a function of seed, step, level and node."""
        numbers = []
        for height, level in enumerate(levels[:-1]):
            streams = torch.full_like(state.seeds, height)
            numbers.append(rng.uniform_several(state.seeds, streams, state.sample.step, level.shape[1] // 2))
        return numbers

    @override
    def stable_prefix(self, state: ConditionalPoissonState) -> list[list[list[int]]]:
        # A forced hypothesis comes first at the end, so nothing is stable before.
        return state.sample.stable_prefix() if state.forced is None else []

    @override
    def finished(self, state: ConditionalPoissonState) -> Bool[Tensor, " batch"]:
        return state.sample.finished

    @override
    def finalize(self, state: ConditionalPoissonState) -> Decoded[Inclusion]:
        sample = state.sample
        log_probs = sample.log_probs.masked_fill(~sample.valid, -torch.inf)
        rank = log_probs if state.forced is None else state.forced.rank_first(log_probs, sample)
        order = rank.argsort(dim=-1, descending=True, stable=True)
        log_probs = log_probs.gather(1, order)
        included = state.log_inclusion.gather(1, order).masked_fill(log_probs == -torch.inf, -torch.inf)
        report = Inclusion(log_probs=log_probs, log_inclusion=included)
        return sample.decoded(sample.log_probs, order).with_report(report)


def log_odds(log_probs: Float64[Tensor, "batch candidates"]) -> Float64[Tensor, "batch candidates"]:
    r"""$\log (p / (1 - p))$; a $p$ of 1 counts as one rounding error less."""
    complement = torch.log(-torch.expm1(log_probs.clamp(max=-(2.0**-53))))
    return log_probs - complement
