"""Beam search."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.result import Decoded, Report
from decodekit.core.validation import check_type, is_count, set_fields, shown
from decodekit.decoders.base import Decoder, Selection, State
from decodekit.decoders.beam.certificate import Certificate
from decodekit.decoders.beam.expansion import BestExpansion, Expansion
from decodekit.decoders.beam.state import BeamState
from decodekit.decoders.beam.step import extend, fill_beams, retire, update_pruned_bound
from decodekit.decoders.beam.stop_rules import Heuristic, SearchStatus, StopRule
from decodekit.errors import DecodekitError
from decodekit.models.protocols import ModelOutputs, ModelOutputsSpec
from decodekit.processors.base import device_ids
from decodekit.scorers.base import PathScorer, check_scorer_type
from decodekit.scorers.length_penalty import LengthPenalty


class BeamDecoder(Decoder[State, Report]):
    """The options and checks that all beam searches share."""

    scorer: PathScorer
    stop_rule: StopRule
    num_return: int

    batch_independent = True

    @property
    @override
    def outputs_spec(self) -> ModelOutputsSpec:
        return self.scorer.outputs_spec

    @override
    def prepare(self, logits: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, "rows vocab"]:
        # Normalized before the processors, so that sums over different hypotheses can be compared.
        return logits.log_softmax(-1)

    def _check_parts(self) -> None:
        """Raise a `TypeError` unless there are a scorer and a stop rule."""
        who, words = type(self).__name__, "a StopRule such as WhenFull()"
        check_scorer_type(who, "scorer", self.scorer)
        check_type(who, "stop_rule", self.stop_rule, StopRule, words)

    def _check_num_return(self, widths: Sequence[int], groups: int = 1) -> None:
        """Raise a `ValueError` unless the finished set of the groups has room for `num_return` hypotheses."""
        # One step can finish at most as many hypotheses as it has beams, so only these are certain.
        most = groups * min(widths[-1], self.stop_rule.capacity(max(widths)))
        if not is_count(self.num_return, 1) or self.num_return > most:
            beams = f"{widths[-1]} beams" if groups == 1 else f"{groups} groups of {widths[-1]} beams"
            raise ValueError(
                f"{type(self).__name__}: num_return must be an integer from 1 to {most} ({beams} with "
                f"{self.stop_rule} are sure to finish only {most}), got {self.num_return!r}."
            )

    def _start(self, history: History, limits: Limits, beams: int) -> BeamState:
        """The state of a search with this number of beams; raises if there are fewer continuations."""
        continuations = limits.vocab**limits.max_new_tokens
        if beams > continuations:
            raise DecodekitError(
                f"{type(self).__name__}: there must be at least as many continuations as beams, got {beams} "
                f"beams for {limits.vocab} tokens ** {limits.max_new_tokens} steps = {continuations}. Use "
                "fewer beams."
            )
        slots = self.stop_rule.capacity(beams)
        return BeamState.start(history, limits, self.scorer, beams=beams, slots=slots)


@final
@dataclass(frozen=True)
class BeamSearch(BeamDecoder[BeamState, Certificate]):
    """Keeps the `beams` best unfinished hypotheses at every step, and the best finished ones.

    A step continues every live hypothesis by every token and ranks the continuations by their summed
    log-probability after the processors. Continuations that end, among the best `beams`, compete by score for
    the finished set. The best `beams` continuations that do not end go on.

    `Decoded.report` is a `Certificate`: it proves that the returned hypotheses are the best, if no pruned
    hypothesis could have scored more.

    Args:
        beams: Live hypotheses, at least 1; or a sequence with their number at each step, whose last entry
            also holds for all later steps. Usual values: 2-10.
        scorer: Scores finished hypotheses.
        stop_rule: Ends the search: `WhenFull`, `Heuristic`, `Proved` or `Patience`.
        expansion: Picks the continuations that a step considers: `BestExpansion`, `SampledExpansion` (beam
            sampling), `PerNodeExpansion` or `DiverseSiblings`.
        num_return: Hypotheses to return, best first; at most as many as can finish. Where fewer exist,
            `valid` is False for the rest.

    Raises:
        ValueError: If `beams` or `num_return` is out of range.
        TypeError: If `scorer`, `stop_rule` or `expansion` is of another type.
        DecodekitError: In a run, if there are more beams than continuations.
        DecodingError: In a run, if every token of every beam of some prompt is banned.

    Example:
        >>> dk.decode(dk.load(), "Once upon a time there was", dk.BeamSearch(4), max_new_tokens=1).texts
        [[' a']]

    Source:
        Lowerre, 1976, *The HARPY speech recognition system*; in the form of Wu et al., 2016,
        https://arxiv.org/abs/1609.08144, section 7.

    Hugging Face:
        `generate(num_beams=beams)`: the same hypotheses for every length penalty and stop rule. If fewer
        hypotheses exist than beams, Hugging Face repeats one or goes past the end; decodekit returns fewer.
    """

    beams: int | Sequence[int]
    _: KW_ONLY
    scorer: PathScorer = LengthPenalty(1.0)
    stop_rule: StopRule = Heuristic()
    expansion: Expansion = BestExpansion()
    num_return: int = 1

    def __post_init__(self) -> None:
        widths = (self.beams,) if not isinstance(self.beams, Sequence) else tuple(self.beams)
        if not widths or isinstance(self.beams, str) or not all(is_count(width, 1) for width in widths):
            raise ValueError(
                f"BeamSearch: beams must be an integer of at least 1, or one per step, got "
                f"{shown(self.beams)}."
            )
        if isinstance(self.beams, Sequence):
            set_fields(self, beams=widths)
        self._check_parts()
        check_type(
            "BeamSearch", "expansion", self.expansion, Expansion, "an Expansion such as BestExpansion()"
        )
        self._check_num_return(widths)

    @property
    @override
    def rows_per_prompt(self) -> int:
        return max(self.beams) if isinstance(self.beams, Sequence) else self.beams

    @override
    def on_model_outputs(self, model_outputs: ModelOutputs, state: BeamState) -> BeamState:
        return state._replace(attention=model_outputs.attention)

    @override
    def init(self, history: History, limits: Limits) -> BeamState:
        return self._start(history, limits, self.rows_per_prompt)

    @override
    def step(self, scores: Float32[Tensor, "rows vocab"], state: BeamState) -> tuple[BeamState, Selection]:
        # Extend every live hypothesis by every token; the best continuations are candidates.
        candidates = extend(scores, state, self.scorer, self.expansion)

        # Only the first `max_live` candidates may finish; the rest replace candidates that end.
        max_live = self._max_live(state.step)
        rank = torch.arange(candidates.log_probs.shape[1], device=scores.device)

        # Retire candidates that ended: they compete for the finished set.
        ended = candidates.ended & candidates.valid & (rank < max_live) & state.active[:, None]
        finished, best_rejected = retire(candidates, ended, state)

        # Go on with the best `max_live` candidates that have not ended.
        beams = state.log_probs.shape[1]
        priority, chosen = candidates.priority.masked_fill(candidates.ended, -torch.inf).topk(beams)
        alive = (rank[:beams] < max_live) & (priority > -torch.inf)
        after, tokens, source_rows = fill_beams(candidates, chosen, alive, finished, state)

        # Decide for each prompt whether to stop.
        status = SearchStatus.of(after, self.scorer)
        active = (
            state.active & (after.log_probs > -torch.inf).any(-1) & self.stop_rule.should_continue(status)
        )
        all_banned = state.all_banned | ~(alive.any(-1) | finished.used.any(-1))

        # Bound the score of everything that was pruned, for the certificate: candidates that get no beam,
        # ended candidates that get no slot, and live hypotheses of prompts that stop here.
        pruned = candidates.valid & ~ended & ~torch.zeros_like(ended).scatter(1, chosen, alive)
        bound = update_pruned_bound(candidates, pruned, scores, state, self.scorer, self.expansion)
        bound = bound.maximum(best_rejected)
        bound = torch.where(state.active & ~active, bound.maximum(status.bound()), bound)

        done = ~active.any() | all_banned.any()
        after = after._replace(pruned_bound=bound, active=active, all_banned=all_banned, done=done)
        return after, Selection(tokens, source_rows)

    @override
    def stable_prefix(self, state: BeamState) -> list[list[list[int]]]:
        return state.stable_prefix(self.num_return)

    @override
    def finished(self, state: BeamState) -> Bool[Tensor, " batch"]:
        return ~state.active

    @override
    def finalize(self, state: BeamState) -> Decoded[Certificate]:
        decoded = state.decoded(self.num_return)
        # A hypothesis that is not returned was pruned, or is finished and ranks next.
        worst, *others = state.finished.scores[:, self.num_return - 1 :].unbind(1)
        bound = torch.stack([state.pruned_bound, *others[:1]]).amax(0)
        return decoded.with_report(Certificate(bound=bound, worst=worst))

    def _max_live(self, step: Int64[Tensor, ""]) -> int | Int64[Tensor, " 1"]:
        """Maximum number of live hypotheses at a step."""
        if not isinstance(self.beams, Sequence):
            return self.beams
        widths = device_ids(self.beams, step.device)
        return widths.index_select(0, step.clamp(max=len(widths) - 1).view(1))
