"""Stochastic beam search."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from decodekit import rng
from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.result import Decoded
from decodekit.core.validation import is_count
from decodekit.decoders.base import Decoder, Selection
from decodekit.decoders.prompt_seeds import own_seeds, read_seeds
from decodekit.decoders.without_replacement.inclusion import Inclusion
from decodekit.decoders.without_replacement.sampled_tree import SampledTree


class StochasticBeamState(NamedTuple):
    """The state of a stochastic beam search.

    Attributes:
        tree: The sample, in the order of its perturbed log-probabilities.
        perturbed: These; minus infinity where there is no hypothesis.
        threshold: The largest that was not kept.
        seeds: One per prompt; with the place of a beam and the step, all its noise.
        model_scores: The model's scores of the current step; None between steps.
    """

    tree: SampledTree
    perturbed: Float64[Tensor, "batch beams"]
    threshold: Float64[Tensor, " batch"]
    seeds: Int64[Tensor, " batch"]
    model_scores: Float32[Tensor, "rows vocab"] | None = None

    @property
    def history(self) -> History:
        """What every row has said."""
        return self.tree.history

    @property
    def done(self) -> Bool[Tensor, ""]:
        """Every hypothesis is finished."""
        return self.tree.done


@final
@dataclass(frozen=True)
class StochasticBeamSearch(Decoder[StochasticBeamState, Inclusion]):
    r"""Draws `beams` different hypotheses: the first as `Sample` does, each other among those that are left.

    Every hypothesis $y$ there is has a perturbed log-probability $G_y = \log p(y) + g_y$ with independent
    standard Gumbel noise $g_y$, and the `beams` largest are a sample without replacement. A beam search finds
    them without looking at the others: the $G$ of a beginning is the largest of all that begin so, hence
    Gumbel distributed too, and the continuations' are drawn under the condition that this is their maximum.
    Finished hypotheses keep their places among the `beams`.

    $p$ is the model's distribution after the processors, every step made to sum to 1 (so truncation and
    constraints leave a distribution), up to `max_new_tokens`: the distribution of `Sample`. Reported
    log-probabilities are the model's own, as everywhere.

    Hypotheses come by their perturbed log-probability, largest first, which is their `score`: the first
    `n` are a sample without replacement of size `n`, and with seeds they are those of `beams=n`.
    `Decoded.report` is an [`Inclusion`][decodekit.Inclusion]: its threshold $\kappa$ is the largest $G$ that
    is *not* in the sample, so that all of the sample counts in an estimate, and the inclusion probability of
    $y$ is $P(G_y > \kappa) = 1 - \exp(-p(y)\, e^{-\kappa})$. Where fewer hypotheses exist than beams, all
    come back, with an inclusion probability of 1, and `valid` says which places are empty.

    A beginning after which the processors ban every token is a dead end. It keeps its place until the end and
    comes back as not valid, which costs hypotheses and keeps the estimates unbiased for all others.

    Args:
        beams: Hypotheses to draw, at least 1. The prompt is computed once.
        generator: The stream that a seed for each prompt is drawn from; None is torch's global one.
        seeds: One integer a prompt, instead of a generator: then a prompt's hypotheses are the same whoever
            else is in the batch.

    Raises:
        ValueError: If `beams` is not an integer of at least 1, if both `generator` and `seeds` are given, or
            if a seed does not fit 64 bits.
        DecodekitError: In a run, if there are not as many seeds as prompts.
        DecodingError: In a run, if for some prompt there is nothing but dead ends.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon a", dk.StochasticBeamSearch(3, seeds=[7]), dk.TopP(0.9),
        ...                 max_new_tokens=8)
        >>> len({tuple(tokens) for tokens in out.hypotheses()[0]})
        3

    Source:
        Kool, van Hoof & Welling, 2019, https://arxiv.org/abs/1903.06059; the conditional maximum as in its
        appendix B.3. There one of the k hypotheses serves as the threshold; here none has to.

    Hugging Face:
        None.
    """

    beams: int
    _: KW_ONLY
    generator: torch.Generator | None = None
    seeds: Sequence[int] | Int64[Tensor, " batch"] | None = None

    batch_independent = True

    def __post_init__(self) -> None:
        if not is_count(self.beams, 1):
            raise ValueError(
                f"StochasticBeamSearch: beams must be an integer of at least 1, got {self.beams!r}."
            )
        seeds = read_seeds("StochasticBeamSearch", self.generator, self.seeds)
        object.__setattr__(self, "beams", int(self.beams))  # the way to set frozen fields
        object.__setattr__(self, "seeds", seeds)

    @property
    def rows_per_prompt(self) -> int:
        """A row a hypothesis."""
        return self.beams

    def init(self, history: History, limits: Limits) -> StochasticBeamState:
        """One beginning, the prompt, with the perturbed log-probability of the best hypothesis."""
        tree = SampledTree.start(history, limits, self.beams)
        seeds = own_seeds("StochasticBeamSearch", self.generator, self.seeds, history)
        # The root's is random too, of stream -1: fixed, the threshold would tell of the maximum.
        root = rng.gumbel_seeded(seeds, torch.full_like(seeds, -1), tree.step, 1)
        return StochasticBeamState(
            tree=tree,
            perturbed=tree.log_probs + root,
            threshold=torch.full_like(tree.log_probs[:, 0], -torch.inf),
            seeds=seeds,
        )

    def step(
        self, scores: Float32[Tensor, "rows vocab"], state: StochasticBeamState
    ) -> tuple[StochasticBeamState, Selection]:
        """Perturbs all continuations, keeps the largest, and remembers the largest that is not kept."""
        grown = state.tree.grow(scores)
        batch, beams, vocab = grown.log_probs.shape
        rows, places = state.seeds.repeat_interleave(beams), torch.arange(beams, device=scores.device)
        noise = rng.gumbel_seeded(rows, places.repeat(batch), state.tree.step, vocab)
        perturbed = with_maximum(grown.log_probs + noise.view_as(grown.log_probs), state.perturbed)
        everything = grown.with_those_that_stay(perturbed, state.perturbed)
        best = everything.topk(min(self.beams + 1, everything.shape[1]))
        kept, chosen = best.values[:, : self.beams], best.indices[:, : self.beams]
        # Each that is not kept is the largest of all hypotheses that begin like it; and what is kept has a
        # continuation as large as itself, so nothing kept later is below this.
        not_kept = best.values[:, self.beams :]
        threshold = torch.cat([state.threshold[:, None], not_kept], 1).amax(1)
        tree = state.tree.with_model_scores(state.model_scores)
        tree, selection = tree.keep(chosen, kept > -torch.inf, grown)
        return StochasticBeamState(tree, kept, threshold, state.seeds), selection

    def stable_prefix(self, state: StochasticBeamState) -> list[list[list[int]]]:
        """What all hypotheses of a prompt begin with."""
        return state.tree.stable_prefix()

    def finished(self, state: StochasticBeamState) -> Bool[Tensor, " batch"]:
        """Prompts whose hypotheses are all finished."""
        return state.tree.finished

    def finalize(self, state: StochasticBeamState) -> Decoded[Inclusion]:
        """The hypotheses, largest perturbed log-probability first, with their inclusion probabilities."""
        tree = state.tree
        valid = tree.valid
        order = state.perturbed.masked_fill(~valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        log_probs = tree.log_probs.masked_fill(~valid, -torch.inf).gather(1, order)
        log_inclusion = log_survival(state.threshold[:, None] - log_probs)
        report = Inclusion(
            log_probs=log_probs,
            log_inclusion=log_inclusion.masked_fill(log_probs == -torch.inf, -torch.inf),
            threshold=state.threshold,
        )
        return tree.decoded(state.perturbed, order).with_report(report)


def with_maximum(
    perturbed: Float64[Tensor, "batch beams vocab"], maximum: Float64[Tensor, "batch beams"]
) -> Float64[Tensor, "batch beams vocab"]:
    r"""Gumbel variables as they would be if their maximum $Z$ were another, $T$.

    $G' = -\log(e^{-T} - e^{-Z} + e^{-G})$: from the distribution function under the one condition to the
    inverse of that under the other. With $v = T - G + \log(1 - e^{G - Z})$ it is
    $T - \max(0, v) - \log(1 + e^{-|v|})$, in which nothing overflows or cancels.

    Args:
        perturbed: Gumbel variables of any locations; minus infinity stays itself.
        maximum: What the largest of each beam becomes, exactly.
    """
    largest = perturbed.amax(-1, keepdim=True)
    target = maximum[..., None]
    below = (perturbed - largest).masked_fill(perturbed == -torch.inf, -torch.inf)
    shift = target - perturbed + torch.log(-torch.expm1(below))
    moved = target - shift.clamp(min=0) - torch.log1p(torch.exp(-shift.abs()))
    return moved.masked_fill((perturbed == -torch.inf) | (target == -torch.inf), -torch.inf)


def log_survival(excess: Float64[Tensor, "batch hyps"]) -> Float64[Tensor, "batch hyps"]:
    r"""$\log P(g > x)$ of a standard Gumbel variable: $\log(1 - \exp(-e^{-x}))$."""
    # Far out the probability is the exponential itself, which may be too small to write.
    far = torch.log(-torch.expm1(-torch.exp(-excess)))
    return torch.where(excess > 30, -excess, far)  # noqa: PLR2004 - e^-30: less than a rounding error off
