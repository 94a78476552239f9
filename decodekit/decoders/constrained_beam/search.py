"""Constrained beam search."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.result import Decoded
from decodekit.core.validation import at_least, check_fields, check_type, set_fields
from decodekit.decoders.base import Selection
from decodekit.decoders.beam.expansion import BestExpansion, Expansion, ExpansionResult
from decodekit.decoders.beam.search import BeamDecoder
from decodekit.decoders.beam.state import BeamState
from decodekit.decoders.beam.step import advance, extend, retire, rows_of
from decodekit.decoders.beam.stop_rules import Heuristic, SearchStatus, StopRule
from decodekit.decoders.constrained_beam.constraints import Constraint, read_constraints
from decodekit.decoders.constrained_beam.phrase_automaton import PhraseAutomaton, on_device
from decodekit.errors import DecodekitError
from decodekit.models.protocols import ModelOutputs
from decodekit.processors.base import Scores
from decodekit.scorers.base import PathScorer
from decodekit.scorers.length_penalty import LengthPenalty


@final
@dataclass(frozen=True)
class ConstrainedBeamSearch(BeamDecoder[BeamState, None]):
    """Finds the best sequences that contain all constraints: beam search with dynamic beam allocation.

    The candidates of a step are the best continuations of all hypotheses, the best token of each hypothesis,
    and every token that advances a constraint. They form banks by the number of tokens they still miss. The
    banks take beams in turn, best candidate first, starting with the bank that misses the fewest. So a
    sequence is found whenever one fits in `max_new_tokens`, unless the processors ban what it must contain.
    (Constraints that may overlap have joint states. With more than 8,192 of them, a sequence is sure to be
    found only where all constraints fit side by side.)

    All returned sequences meet all constraints: no hypothesis ends before, and one that can no longer meet
    them within `max_new_tokens` loses its beam. Where fewer sequences exist than were asked for, `valid` is
    False for the rest. Only new tokens count, not the prompt. To exclude phrases use `BadWords`.

    Args:
        beams: Live hypotheses, at least 1. Usual values: 5-20, at least the number of constraints.
        constraints: `Phrase` and `OneOf` that every sequence must contain; one list, or one per prompt.
        ordered: If True, constraints must be met in the order of the list, without overlap. If False, in any
            order; phrases may overlap, and one occurrence counts for every constraint within it.
        scorer: Scores finished hypotheses.
        stop_rule: Ends the search: `WhenFull`, `Heuristic`, `Proved` or `Patience`.
        num_return: Hypotheses to return, best first; at most as many as can finish.

    Raises:
        ValueError: If `beams` or `num_return` is out of range.
        TypeError: If `constraints`, `ordered`, `scorer` or `stop_rule` is of another type.
        DecodekitError: In a run, if there are more beams than continuations, an id is outside the vocabulary,
            or the number of lists of constraints is not that of the prompts.
        DecodingError: In a run, if every token of every beam of some prompt is banned.

    Example:
        >>> model = dk.load()
        >>> search = dk.ConstrainedBeamSearch(4, [dk.Phrase(model.tokenizer.encode(" wolf"))])
        >>> dk.decode(model, "Once upon a time there was", search, max_new_tokens=5).texts
        [[' a wolf, and he']]

    Source:
        Post & Vilar, 2018, https://arxiv.org/abs/1804.06609; Hu et al., 2019,
        https://aclanthology.org/N19-1090.

    Hugging Face:
        `generate(constraints=[PhrasalConstraint(ids)], num_beams=beams)` of transformers up to 4.55. Theirs
        also finds constraints in the prompt, restarts a phrase that breaks off without the part that still
        matches, and returns sequences that miss constraints where few meet them.
    """

    beams: int
    constraints: Sequence[Constraint] | Sequence[Sequence[Constraint]]
    _: KW_ONLY
    ordered: bool = False
    scorer: PathScorer = LengthPenalty(1.0)
    stop_rule: StopRule = Heuristic()
    num_return: int = 1
    _automaton: PhraseAutomaton = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        who = "ConstrainedBeamSearch"
        check_fields(self, beams=at_least(1))
        self._check_parts()
        check_type(who, "ordered", self.ordered, bool, "True or False")
        self._check_num_return([self.beams])
        constraints = read_constraints(who, self.constraints)
        per_prompt = constraints if constraints and isinstance(constraints[0], tuple) else (constraints,)
        phrases = [[one.alternatives for one in prompt] for prompt in per_prompt]  # type: ignore[union-attr]
        # An ordered search has one goal, which matches all constraints in turn.
        goals = [[prompt] if self.ordered else [[one] for one in prompt] for prompt in phrases]
        set_fields(self, constraints=constraints, _automaton=PhraseAutomaton.build(goals))

    @property
    @override
    def rows_per_prompt(self) -> int:
        return self.beams

    @override
    def on_model_outputs(self, model_outputs: ModelOutputs, state: BeamState) -> BeamState:
        return state._replace(attention=model_outputs.attention)

    @override
    def init(self, history: History, limits: Limits) -> BeamState:
        state = self._start(history, limits, self.beams)
        if self._automaton.stride > limits.vocab:
            raise DecodekitError(
                f"ConstrainedBeamSearch: token ids must be below the vocabulary size {limits.vocab}, got "
                f"{self._automaton.stride - 1}."
            )
        automaton = on_device(self._automaton, history.tokens.device)
        return state._replace(progress=automaton.start("ConstrainedBeamSearch", history))

    @override
    def step(self, scores: Scores, state: BeamState) -> tuple[BeamState, Selection]:
        automaton = on_device(self._automaton, scores.device)

        # Extend the live hypotheses by the best tokens, and by those that advance a constraint.
        next_ids = automaton.advancing_ids(state.progress).view(*state.log_probs.shape, -1)
        candidates = extend(scores, state, self.scorer, ConstraintExpansion(next_ids))
        number = candidates.log_probs.shape[1]
        parents, tokens = candidates.entry.parents.flatten(), candidates.entry.tokens.flatten()
        progress = automaton.advance(state.progress.index_select(0, parents), tokens)

        # Rank the candidates that can still meet all constraints: the banks take turns.
        room = state.limits.max_new_tokens - (state.step + 1)
        room = torch.where(candidates.ended, 0, room)
        feasible = candidates.valid & (automaton.min_missing(progress).view(-1, number) <= room)
        rank = allocate(automaton.missing(progress).view(-1, number), feasible)

        # Retire hypotheses that have ended, and go on with the first `beams` others.
        ended = candidates.ended & feasible & (rank < self.beams) & state.active[:, None]
        finished, _ = retire(candidates, ended, state)
        priority = (-rank).float().masked_fill(candidates.ended | ~feasible, -torch.inf)
        priority, chosen = priority.topk(self.beams)
        alive = priority > -torch.inf
        after, tokens, source_rows = advance(candidates, chosen, alive, finished, state)
        progress = progress.index_select(0, rows_of(chosen, number).flatten())

        # Decide for each prompt whether to stop.
        status = SearchStatus.of(after, self.scorer)
        active = state.active & alive.any(-1) & self.stop_rule.should_continue(status)
        is_stuck = state.active & ~candidates.valid.any(-1) & ~finished.used.any(-1)
        all_banned = state.all_banned | is_stuck
        done = ~active.any() | all_banned.any()
        after = after._replace(active=active, all_banned=all_banned, done=done, progress=progress)
        return after, Selection(tokens, source_rows)

    @override
    def stable_prefix(self, state: BeamState) -> list[list[list[int]]]:
        # Before a hypothesis has finished, it is not known that one can: constraints may not be met.
        found = state.finished.used.any(-1).tolist()
        prompts = state.stable_prefix(self.num_return)
        return [prompt if is_found else [[]] for prompt, is_found in zip(prompts, found, strict=True)]

    @override
    def finished(self, state: BeamState) -> Bool[Tensor, " batch"]:
        return ~state.active

    @override
    def finalize(self, state: BeamState) -> Decoded:
        return state.decoded(self.num_return)


@final
@dataclass(frozen=True, eq=False)
class ConstraintExpansion(Expansion):
    """Picks the best continuations, the best token of every beam, and tokens that advance a constraint."""

    next_ids: Int64[Tensor, "batch beams next"]  # that advance a constraint of the beam, padded with -1

    batch_independent = True

    @override
    def pick(self, log_probs: Float32[Tensor, "batch beams vocab"], number: int) -> ExpansionResult:
        _, beams, vocab = log_probs.shape
        best = BestExpansion().pick(log_probs, number).indices
        first = vocab * torch.arange(beams, device=log_probs.device)[:, None]
        is_id = self.next_ids >= 0
        tokens = torch.cat([log_probs.argmax(-1, keepdim=True), self.next_ids.masked_fill(~is_id, 0)], -1)
        indices = torch.cat([best, (first + tokens).flatten(1)], 1)
        is_none = torch.cat([torch.zeros_like(tokens[..., :1], dtype=torch.bool), ~is_id], -1).flatten(1)
        sums = log_probs.flatten(1).gather(1, indices)
        # Leave out continuations that an earlier column holds already: [batch candidates candidates]
        is_same = indices[:, :, None] == indices[:, None, :]
        left_out = is_same.tril(-1)[:, best.shape[1] :].any(-1) | is_none
        left_out = torch.cat([torch.zeros_like(best, dtype=torch.bool), left_out], 1)
        priority, order = sums.masked_fill(left_out, -torch.inf).sort(descending=True, stable=True)
        return ExpansionResult(indices.gather(1, order), priority)


def allocate(
    missing: Int64[Tensor, "batch candidates"], feasible: Bool[Tensor, "batch candidates"]
) -> Int64[Tensor, "batch candidates"]:
    """Rank of each candidate: the best of every bank, then the second of every bank, and so on.

    A bank holds the candidates that miss equally many tokens, best first. Banks that miss fewer come
    first. So the banks share the beams evenly, beams that one bank does not need go to
    others, and progress is never lost. Candidates that are not feasible rank last.
    """
    number = missing.shape[1]
    # Better candidates of the same bank: [batch candidates candidates]
    better = ((missing[:, :, None] == missing[:, None, :]) & feasible[:, None, :]).tril(-1)
    rank_in_bank = better.sum(-1).masked_fill(~feasible, number)
    # Order by rank, then by bank: the second sort is stable.
    by_bank = missing.argsort(dim=-1, stable=True)
    order = by_bank.gather(1, rank_in_bank.gather(1, by_bank).argsort(dim=-1, stable=True))
    ranks = torch.arange(number, device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, ranks)
