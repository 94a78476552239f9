"""Conditional Poisson stochastic beams."""

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
from decodekit.decoders.without_replacement.conditional_poisson import (
    Levels,
    draw_set,
    log_inclusion,
    polynomials,
)
from decodekit.decoders.without_replacement.conditioned_texts import ConditionedTexts, read_texts
from decodekit.decoders.without_replacement.inclusion import Inclusion
from decodekit.decoders.without_replacement.sampled_tree import SampledTree


class ConditionalPoissonState(NamedTuple):
    """The state of conditional Poisson beams.

    Attributes:
        tree: The sample.
        log_inclusion: Of each hypothesis: the sum over the steps of the log-probability that it was drawn.
        kept: The texts that are to be in the sample; None if there are none.
        seeds: One per prompt.
        model_scores: The model's scores of the current step; None between steps.
    """

    tree: SampledTree
    log_inclusion: Float64[Tensor, "batch beams"]
    kept: ConditionedTexts | None
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
class ConditionalPoissonBeams(Decoder[ConditionalPoissonState, Inclusion]):
    r"""Draws `beams` different hypotheses, at every step as a set whose probability is a product of odds.

    A beam search that draws where it would choose: of all continuations of its beams (a finished hypothesis
    is its own), it draws a set of `beams` with probability

    $$P(S) \propto \prod_{y \in S} \frac{p(y)}{1 - p(y)},$$

    the conditional Poisson design, so that each is drawn about in proportion to its probability $p(y)$ as
    the beginning of a text. The sets are exact, from all continuations of the vocabulary.

    $p$ is the model's distribution after the processors, every step made to sum to 1, up to `max_new_tokens`:
    the distribution of `Sample`. Reported log-probabilities are the model's own, as everywhere. Hypotheses
    come by $p$, likeliest first; $\log p$ is their `score`. Where fewer exist than beams, all of them come
    back. A beginning after which every token is banned keeps its place, and comes back as not valid.

    `Decoded.report` is an [`Inclusion`][decodekit.Inclusion]. Its probabilities are products over the steps
    of the exact probability to be drawn, *given the beams of the step before*: they make estimates unbiased,
    and they vary with the other beams. The probability over all samples, for the Horvitz-Thompson estimator,
    is their average over samples that hold the hypothesis, each forced into it with `keep`: an importance
    sampling estimate, from as many further runs as one likes (see the second example).

    Args:
        beams: Hypotheses to draw, at least 1. The prompt is computed once.
        keep: For every prompt the ids of a whole continuation, up to its end id or the limit, that is in the
            sample whatever the others are. It comes first, with its inclusion probability; those of the
            others, and estimates, are not to be used then.
        generator: The stream that a seed for each prompt is drawn from; None is torch's global one.
        seeds: One integer a prompt, instead of a generator: then a prompt's hypotheses are the same whoever
            else is in the batch.

    Raises:
        ValueError: If `beams` is not an integer of at least 1, if `keep` is not a list of ids for each
            prompt, if both `generator` and `seeds` are given, or if a seed does not fit 64 bits.
        DecodekitError: In a run, if there are not as many seeds, or kept texts, as prompts.
        DecodingError: In a run, if for some prompt there is nothing but dead ends, or if a kept text is not
            one that could be drawn.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon a", dk.ConditionalPoissonBeams(3, seeds=[7]),
        ...                 max_new_tokens=4)
        >>> kept = dk.ConditionalPoissonBeams(3, keep=out.hypotheses()[0][:1] * 20, seeds=range(20))
        >>> again = dk.decode(dk.load(), ["Once upon a"] * 20, kept, max_new_tokens=4)
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
        if not is_count(self.beams, 1):
            raise ValueError(
                f"ConditionalPoissonBeams: beams must be an integer of at least 1, got {self.beams!r}."
            )
        seeds = read_seeds("ConditionalPoissonBeams", self.generator, self.seeds)
        keep = None if self.keep is None else read_texts("ConditionalPoissonBeams", self.keep)
        object.__setattr__(self, "beams", int(self.beams))  # the way to set frozen fields
        object.__setattr__(self, "seeds", seeds)
        object.__setattr__(self, "keep", keep)

    @property
    def rows_per_prompt(self) -> int:
        """A row a hypothesis."""
        return self.beams

    def init(self, history: History, limits: Limits) -> ConditionalPoissonState:
        """One beginning, the prompt."""
        tree = SampledTree.start(history, limits, self.beams)
        seeds = own_seeds("ConditionalPoissonBeams", self.generator, self.seeds, history)
        kept = None
        if self.keep is not None:
            kept = ConditionedTexts.start("ConditionalPoissonBeams", self.keep, history, limits)
        return ConditionalPoissonState(tree, torch.zeros_like(tree.log_probs), kept, seeds)

    def step(
        self, scores: Float32[Tensor, "rows vocab"], state: ConditionalPoissonState
    ) -> tuple[ConditionalPoissonState, Selection]:
        """Draws a set of continuations, and takes down how likely each was to be in it."""
        state = state._replace(tree=state.tree.with_model_scores(state.model_scores))
        grown = state.tree.grow(scores)
        vocab = grown.log_probs.shape[-1]
        log_probs = grown.log_probs.flatten(1)
        odds = log_odds(log_probs)
        size = (log_probs > -torch.inf).sum(-1).clamp(max=self.beams)
        levels = polynomials(odds, self.beams)
        if state.kept is None:
            forced = None
            drawn = draw_set(levels, size, self._uniform(levels, state))
        else:
            forced = state.kept.continuation(state.tree.step, grown)
            is_forced = torch.arange(odds.shape[1], device=odds.device) == forced[:, None]
            others = polynomials(odds.masked_fill(is_forced, -torch.inf), self.beams)
            rest = (size - (forced >= 0).long()).clamp(min=0)
            drawn = draw_set(others, rest, self._uniform(others, state))[:, : odds.shape[1]] | is_forced
        best = log_probs.masked_fill(~drawn[:, : odds.shape[1]], -torch.inf).topk(self.beams)
        chosen, exists = best.indices, best.values > -torch.inf
        # A sample that is complete is drawn again for sure, but for rounding.
        included = log_inclusion(levels, size, chosen).masked_fill(state.tree.finished[:, None], 0.0)
        before = state.log_inclusion.gather(1, chosen // vocab)
        tree, selection = state.tree.keep(chosen, exists, grown)
        kept = state.kept
        if kept is not None and forced is not None:
            kept = kept.after(chosen, forced)
        return ConditionalPoissonState(
            tree, torch.where(exists, before + included, 0.0), kept, state.seeds
        ), selection

    @staticmethod
    def _uniform(levels: Levels, state: ConditionalPoissonState) -> list[Float64[Tensor, "batch _parents"]]:
        """A number for every inner node: a function of seed, step, level and place."""
        numbers = []
        for height, level in enumerate(levels[:-1]):
            streams = torch.full_like(state.seeds, height)
            numbers.append(rng.uniform_several(state.seeds, streams, state.tree.step, level.shape[1] // 2))
        return numbers

    def stable_prefix(self, state: ConditionalPoissonState) -> list[list[list[int]]]:
        """What all hypotheses of a prompt begin with; nothing where one is kept, which is to come first."""
        return state.tree.stable_prefix() if state.kept is None else []

    def finished(self, state: ConditionalPoissonState) -> Bool[Tensor, " batch"]:
        """Prompts whose hypotheses are all finished."""
        return state.tree.finished

    def finalize(self, state: ConditionalPoissonState) -> Decoded[Inclusion]:
        """The hypotheses, likeliest first, with their inclusion probabilities; what was kept before all."""
        tree = state.tree
        log_probs = tree.log_probs.masked_fill(~tree.valid, -torch.inf)
        rank = log_probs if state.kept is None else state.kept.lifted(log_probs, tree)
        order = rank.argsort(dim=-1, descending=True, stable=True)
        log_probs = log_probs.gather(1, order)
        included = state.log_inclusion.gather(1, order).masked_fill(log_probs == -torch.inf, -torch.inf)
        report = Inclusion(log_probs=log_probs, log_inclusion=included)
        return tree.decoded(tree.log_probs, order).with_report(report)


def log_odds(log_probs: Float64[Tensor, "batch continuations"]) -> Float64[Tensor, "batch continuations"]:
    r"""$\log (p / (1 - p))$, and for a $p$ of 1 what it is one rounding error below it."""
    complement = torch.log(-torch.expm1(log_probs.clamp(max=-(2.0**-53))))
    return log_probs - complement
