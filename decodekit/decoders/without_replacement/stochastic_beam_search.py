"""Stochastic beam search."""

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
from decodekit.core.validation import at_least, check_fields, set_fields
from decodekit.decoders.base import Decoder, Selection
from decodekit.decoders.prompt_seeds import own_seeds, read_seeds
from decodekit.decoders.without_replacement.inclusion import Inclusion
from decodekit.decoders.without_replacement.sampled_beams import SampledBeams
from decodekit.processors.base import Scores


class GumbelMemory(NamedTuple):
    """The memory of a stochastic beam search; beams are in the order of `perturbed`."""

    perturbed: Float64[Tensor, "batch beams"]  # perturbed log-probabilities
    threshold: Float64[Tensor, " batch"]  # the largest perturbed log-probability of a pruned candidate
    seeds: Int64[Tensor, " batch"]  # all noise is a function of seed, beam and step


@final
@dataclass(frozen=True)
class StochasticBeamSearch(Decoder[SampledBeams, Inclusion]):
    r"""Samples `beams` different hypotheses without replacement: Gumbel-top-k over all sequences.

    Every hypothesis $y$ has a perturbed log-probability $G_y = \log p(y) + g_y$ with independent standard
    Gumbel noise $g_y$. The `beams` largest are a sample without replacement; the first one is a sample like
    that of `Sample`. Beam search finds them without enumeration. The $G$ of a partial hypothesis is the
    maximum over all its continuations, which is Gumbel distributed too, and the $G$ of its children are drawn
    conditionally on their maximum being that of the parent. Finished hypotheses keep their places among the
    beams.

    $p$ is the model's distribution after the processors, every step normalized (so truncation and constraints
    leave a distribution), up to `max_new_tokens`: the distribution of `Sample`. Reported log-probabilities
    are the model's own, as everywhere.

    Hypotheses are in the order of their perturbed log-probability, largest first, which is their `score`: the
    first `n` are a sample without replacement of size `n`, and with seeds the sample of `beams=n`.
    `Decoded.report` is an [`Inclusion`][decodekit.Inclusion]. Its threshold $\kappa$ is the largest $G$ that
    is *not* in the sample, so that the whole sample counts in an estimate, and the inclusion probability of
    $y$ is $P(G_y > \kappa) = 1 - \exp(-p(y)\, e^{-\kappa})$. Where fewer hypotheses exist than beams, all
    are returned, with an inclusion probability of 1, and `valid` marks the empty places.

    A partial hypothesis with every next token banned is a dead end. It keeps its place until the end and is
    returned as not valid. This costs hypotheses, and keeps estimates over complete ones unbiased.

    Args:
        beams: Hypotheses to sample, at least 1. The prompt is computed once.
        generator: The stream that a seed for each prompt is drawn from; None is torch's global one.
        seeds: One integer per prompt, instead of a generator: then a prompt's hypotheses do not depend on the
            batch.

    Raises:
        ValueError: If `beams` is not an integer of at least 1, if both `generator` and `seeds` are given, or
            if a seed does not fit 64 bits.
        DecodekitError: In a run, if there are not as many seeds as prompts.
        DecodingError: In a run, if some prompt has dead ends only.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon a", dk.StochasticBeamSearch(3, seeds=[7]), dk.TopP(0.9),
        ...                 max_new_tokens=8)
        >>> len({tuple(tokens) for tokens in out.hypotheses()[0]})
        3

    Source:
        Kool, van Hoof & Welling, 2019, https://arxiv.org/abs/1903.06059, algorithm 1; the conditional maximum
        as in appendix B.3. There the threshold is one of the k hypotheses; here it is the next candidate.

    Hugging Face:
        None.
    """

    beams: int
    _: KW_ONLY
    generator: torch.Generator | None = None
    seeds: Sequence[int] | Int64[Tensor, " batch"] | None = None

    batch_independent = True

    def __post_init__(self) -> None:
        check_fields(self, beams=at_least(1))
        read_seeds(self)
        set_fields(self, beams=int(self.beams))

    @property
    @override
    def rows_per_prompt(self) -> int:
        return self.beams

    @override
    def init(self, history: History, limits: Limits) -> SampledBeams:
        state = SampledBeams.start(history, limits, self.beams)
        seeds = own_seeds(self, history)
        # The root's G is random too, of stream -1: were it fixed, threshold and maximum would be dependent.
        root = rng.gumbel_seeded(seeds, torch.full_like(seeds, -1), state.step, 1)
        threshold = torch.full_like(state.log_probs[:, 0], -torch.inf)
        return state._replace(memory=GumbelMemory(state.log_probs + root, threshold, seeds))

    @override
    def step(self, scores: Scores, state: SampledBeams) -> tuple[SampledBeams, Selection]:
        before: GumbelMemory = state.memory
        candidates = state.expand(scores)
        batch, beams, vocab = candidates.log_probs.shape
        seeds, streams = before.seeds.repeat_interleave(beams), torch.arange(beams, device=scores.device)
        noise = rng.gumbel_seeded(seeds, streams.repeat(batch), state.step, vocab)
        perturbed = with_maximum(candidates.log_probs + noise.view(batch, beams, vocab), before.perturbed)
        flat = candidates.flat(perturbed, before.perturbed)
        best = flat.topk(min(self.beams + 1, flat.shape[1]))
        perturbed, chosen = best.values[:, : self.beams], best.indices[:, : self.beams]
        # The G of a pruned candidate is the maximum over its continuations, and a selected one has a
        # continuation with the same G: so no hypothesis of the final sample is below the threshold.
        pruned = best.values[:, self.beams :]
        threshold = torch.cat([before.threshold[:, None], pruned], 1).amax(1)
        after, selection = state.select(chosen, perturbed > -torch.inf, candidates)
        return after._replace(memory=GumbelMemory(perturbed, threshold, before.seeds)), selection

    @override
    def stable_prefix(self, state: SampledBeams) -> list[list[list[int]]]:
        return state.stable_prefix()

    @override
    def finished(self, state: SampledBeams) -> Bool[Tensor, " batch"]:
        return state.finished

    @override
    def finalize(self, state: SampledBeams) -> Decoded[Inclusion]:
        memory: GumbelMemory = state.memory
        included = log_survival(memory.threshold[:, None] - state.log_probs)
        return state.decoded(memory.perturbed, memory.perturbed, included, memory.threshold)


def with_maximum(
    perturbed: Float64[Tensor, "batch beams vocab"], maximum: Float64[Tensor, "batch beams"]
) -> Float64[Tensor, "batch beams vocab"]:
    r"""Gumbel variables with maximum $Z$, transformed to the maximum $T$.

    $G' = -\log(e^{-T} - e^{-Z} + e^{-G})$: the distribution function given the one maximum, then the
    inverse of that given the other. With $v = T - G + \log(1 - e^{G - Z})$ this equals
    $T - \max(0, v) - \log(1 + e^{-|v|})$, in which nothing overflows or cancels.
    The largest value becomes exactly $T$; minus infinity stays minus infinity.
    """
    largest = perturbed.amax(-1, keepdim=True)
    target = maximum[..., None]
    below = (perturbed - largest).masked_fill(perturbed == -torch.inf, -torch.inf)
    shift = target - perturbed + torch.log(-torch.expm1(below))
    moved = target - shift.clamp(min=0) - torch.log1p(torch.exp(-shift.abs()))
    return moved.masked_fill((perturbed == -torch.inf) | (target == -torch.inf), -torch.inf)


def log_survival(excess: Float64[Tensor, "batch hyps"]) -> Float64[Tensor, "batch hyps"]:
    r"""$\log P(g > x)$ of a standard Gumbel variable: $\log(1 - \exp(-e^{-x}))$."""
    # For large x it is e^-x, which may underflow.
    exact = torch.log(-torch.expm1(-torch.exp(-excess)))
    return torch.where(excess > 30, -excess, exact)  # noqa: PLR2004 - e^-30 is below rounding
