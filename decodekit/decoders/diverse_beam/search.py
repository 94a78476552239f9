"""Diverse beam search."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float32, Int64, Shaped
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.limits import LENGTH, Limits
from decodekit.core.result import Decoded
from decodekit.core.validation import at_least, check_fields, check_type, is_count
from decodekit.decoders.base import Selection
from decodekit.decoders.beam.expansion import BestExpansion
from decodekit.decoders.beam.search import BeamDecoder
from decodekit.decoders.beam.state import BeamState, Finished
from decodekit.decoders.beam.step import extend, fill_beams, retire
from decodekit.decoders.beam.stop_rules import Heuristic, SearchStatus, StopRule
from decodekit.decoders.diverse_beam.diversity import Diversity, GroupHypotheses, Hamming
from decodekit.decoders.rows import raise_if_all_banned
from decodekit.models.protocols import ModelOutputs
from decodekit.processors.base import Scores
from decodekit.scorers.base import PathScorer
from decodekit.scorers.length_penalty import LengthPenalty


class DiverseState(NamedTuple):
    """The state of a diverse beam search: a state per group, whose rows follow each other in a prompt."""

    history: History
    groups: tuple[BeamState, ...]
    done: Bool[Tensor, ""]
    model_scores: Float32[Tensor, "rows vocab"] | None = None


@final
@dataclass(frozen=True)
class DiverseBeamSearch(BeamDecoder[DiverseState, None]):
    """Searches with several groups of beams, and penalizes each group for repeating earlier ones.

    In every step the groups take turns. Each is a beam search of `beams / groups` beams with its own finished
    hypotheses, over log-probabilities from which the penalties of `diversity` are subtracted. The best
    hypotheses of all groups are returned. Scores include the penalties; `token_log_probs` do not. If several
    groups find the same hypothesis, it is returned once; penalties make this rare.

    Args:
        beams: Live hypotheses of all groups together, at least 1. Usual values: 4-20.
        groups: Number of groups; it divides `beams`.
        diversity: Penalties on tokens: `Hamming` or `NGramDiversity`.
        scorer: Scores finished hypotheses.
        stop_rule: Ends the search of a group: `WhenFull`, `Heuristic`, `Proved` or `Patience`.
        num_return: Hypotheses to return, best first; at most as many as can finish.

    Raises:
        ValueError: If `beams`, `groups` or `num_return` is out of range.
        TypeError: If `diversity`, `scorer` or `stop_rule` is of another type.
        DecodekitError: In a run, if a group has more beams than there are continuations.
        DecodingError: In a run, if every token of every beam of some prompt is banned.

    Example:
        >>> search = dk.DiverseBeamSearch(2, 2, diversity=Hamming(5.0), num_return=2)
        >>> dk.decode(dk.load(), "Once upon a time there was", search, max_new_tokens=1).texts
        [[' a', ' no']]

    Source:
        Vijayakumar et al., 2016, https://arxiv.org/abs/1610.02424, Algorithm 1.

    Hugging Face:
        `generate(num_beams=beams, num_beam_groups=groups, diversity_penalty=strength)` of transformers up to
        4.55: the same hypotheses, but Hugging Face returns a hypothesis once for every group that finds it.
        It subtracts the penalty before the other processors instead of after them, and counts the padding of
        finished groups as emitted tokens.
    """

    beams: int
    groups: int
    _: KW_ONLY
    diversity: Diversity = Hamming(0.5)
    scorer: PathScorer = LengthPenalty(1.0)
    stop_rule: StopRule = Heuristic()
    num_return: int = 1

    def __post_init__(self) -> None:
        check_fields(self, beams=at_least(1))
        if not is_count(self.groups, 1) or self.beams % self.groups:
            raise ValueError(
                "DiverseBeamSearch: groups must be an integer of at least 1 that divides beams, got "
                f"{self.groups!r} for {self.beams} beams."
            )
        self._check_parts()
        words = "a Diversity such as Hamming(0.5)"
        check_type("DiverseBeamSearch", "diversity", self.diversity, Diversity, words)
        self._check_num_return([self._group_beams], self.groups)

    @property
    @override
    def rows_per_prompt(self) -> int:
        return self.beams

    @override
    def on_model_outputs(self, model_outputs: ModelOutputs, state: DiverseState) -> DiverseState:
        if model_outputs.attention is None:
            return state
        parts = zip(state.groups, self._split(model_outputs.attention), strict=True)
        return state._replace(groups=tuple(group._replace(attention=part) for group, part in parts))

    @override
    def init(self, history: History, limits: Limits) -> DiverseState:
        rows = torch.arange(len(history.tokens), device=history.tokens.device)
        parts = [history.part(part, self._group_beams) for part in self._split(rows)]
        groups = tuple(self._start(part, limits, self._group_beams) for part in parts)
        return DiverseState(history, groups, groups[0].done.clone())

    @override
    def step(self, scores: Scores, state: DiverseState) -> tuple[DiverseState, Selection]:
        before = state.groups
        if state.model_scores is not None:
            parts = zip(before, self._split(state.model_scores), strict=True)
            before = tuple(group._replace(model_scores=part) for group, part in parts)
        step = before[0].step
        groups: list[BeamState] = []
        earlier: list[GroupHypotheses] = []
        selections: list[tuple[Tensor, Tensor]] = []
        for number, (group, group_scores) in enumerate(zip(before, self._split(scores), strict=True)):
            # Subtract the penalties for tokens that earlier groups have emitted.
            penalized = group_scores
            if earlier:
                live = (group.log_probs > -torch.inf) & group.active[:, None]
                hypotheses = GroupHypotheses(group.live.tokens, step * live, live)
                together = earlier[0].concat(*earlier[1:])
                penalties = self.diversity.penalties(hypotheses, together, step, scores.shape[-1])
                penalized = group_scores - penalties.flatten(0, 1)

            # Take a step of beam search with the group.
            after, tokens, source_rows, emits = self._step_group(penalized, group)
            groups.append(after)
            selections.append((tokens, self._rows(source_rows, number)))

            # Let later groups see the hypotheses of the group, live and finished.
            alive, finished = (after.log_probs > -torch.inf) & group.active[:, None], after.finished
            nowhere = torch.zeros_like(finished.used)
            earlier += [
                GroupHypotheses(after.live.tokens, (step + 1) * alive, emits & group.active[:, None]),
                GroupHypotheses(finished.records.tokens, finished.lengths * finished.used, nowhere),
            ]

        tokens, source_rows = (self._join(parts) for parts in zip(*selections, strict=True))
        all_banned = torch.stack([group.all_banned for group in groups]).all(0)
        done = ~torch.stack([group.active for group in groups]).any() | all_banned.any()
        history = state.history.take(source_rows).append(tokens)
        return DiverseState(history, tuple(groups), done), Selection(tokens, source_rows)

    def _step_group(
        self, scores: Float32[Tensor, "part vocab"], group: BeamState
    ) -> tuple[BeamState, Int64[Tensor, " part"], Int64[Tensor, " part"], Bool[Tensor, "batch width"]]:
        """One step of `BeamSearch` in a group: the results of `fill_beams`, and the beams that emit a token.

        Two details differ from `BeamSearch`, as in Hugging Face: hypotheses that end by the limit of the run
        still emit their last token, and the stop rule sees all candidates, including candidates that ended.
        """
        candidates = extend(scores, group, self.scorer, BestExpansion())
        rank = torch.arange(candidates.log_probs.shape[1], device=scores.device)
        ended = candidates.ended & candidates.valid & (rank < self._group_beams) & group.active[:, None]
        finished, _ = retire(candidates, ended, group)
        is_silent = candidates.ended & (candidates.finish_code != LENGTH)
        priority, chosen = candidates.priority.masked_fill(is_silent, -torch.inf).topk(self._group_beams)
        emits = priority > -torch.inf
        alive = emits & ~candidates.ended.gather(1, chosen)
        after, tokens, source_rows = fill_beams(candidates, chosen, alive, finished, group)
        status = SearchStatus.of(after, self.scorer)
        status = status._replace(live_log_probs=candidates.log_probs, memory=candidates.memory)
        active = group.active & alive.any(-1) & self.stop_rule.should_continue(status)
        all_banned = group.all_banned | ~(alive.any(-1) | finished.used.any(-1))
        return after._replace(active=active, all_banned=all_banned), tokens, source_rows, emits

    @override
    def finished(self, state: DiverseState) -> Bool[Tensor, " batch"]:
        return ~torch.stack([group.active for group in state.groups]).any(0)

    @override
    def finalize(self, state: DiverseState) -> Decoded:
        raise_if_all_banned(torch.stack([group.all_banned for group in state.groups]).all(0), state.history)
        finished = []
        for number, group in enumerate(state.groups):
            records = group.finished.records
            records = records._replace(parents=self._rows(records.parents, number))
            finished.append(group.finished._replace(records=records))
        return _merge(finished).decoded(state.groups[0].limits, self.num_return)

    @property
    def _group_beams(self) -> int:
        """Beams of each group."""
        return self.beams // self.groups

    def _split(self, values: Shaped[Tensor, "rows *rest"]) -> list[Shaped[Tensor, "part *rest"]]:
        """Values per row, as one part for each group."""
        # [rows ...] -> [batch groups width ...] -> a part for each group
        by_group = values.view(-1, self.groups, self._group_beams, *values.shape[1:])
        return [part.flatten(0, 1) for part in by_group.unbind(1)]

    def _join(self, parts: Sequence[Shaped[Tensor, " part"]]) -> Shaped[Tensor, " rows"]:
        """Values per row, from the parts of the groups."""
        return torch.stack([part.view(-1, self._group_beams) for part in parts], 1).flatten()

    def _rows(self, rows: Int64[Tensor, "*shape"], group: int) -> Int64[Tensor, "*shape"]:
        """Rows of a group's search, as rows of the whole search."""
        return rows // self._group_beams * self.beams + group * self._group_beams + rows % self._group_beams


def _merge(groups: Sequence[Finished]) -> Finished:
    """The finished hypotheses of all groups, best first, each once."""
    records = groups[0].records.concat(*(group.records for group in groups[1:]))
    fields = zip(*(group[1:] for group in groups), strict=True)
    together = Finished(records, *(torch.cat(values, 1) for values in fields))
    is_duplicate = _is_duplicate(records.tokens, together.lengths, together.scores)
    scores, order = together.scores.masked_fill(is_duplicate, -torch.inf).sort(descending=True, stable=True)
    merged = together.take(order)
    return merged._replace(scores=scores, used=merged.used & (scores > -torch.inf))


def _is_duplicate(
    tokens: Int64[Tensor, "batch slots new"],
    lengths: Int64[Tensor, "batch slots"],
    scores: Float32[Tensor, "batch slots"],
) -> Bool[Tensor, "batch slots"]:
    """True for hypotheses that another slot holds with a better score, or with the same one and earlier."""
    is_junk = torch.arange(tokens.shape[-1], device=tokens.device) >= lengths[..., None]
    tokens = tokens.masked_fill(is_junk, -1)
    same = (tokens[:, :, None] == tokens[:, None]).all(-1)  # [batch slots slots]
    slots = torch.arange(scores.shape[1], device=scores.device)
    is_earlier = slots[:, None] > slots
    better = (scores[:, None] > scores[..., None]) | ((scores[:, None] == scores[..., None]) & is_earlier)
    return (same & better).any(-1)
