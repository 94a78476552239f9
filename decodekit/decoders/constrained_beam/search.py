"""Beam search for texts that contain what they must."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.result import Decoded
from decodekit.decoders.base import Decoder, Selection
from decodekit.decoders.beam.arguments import (
    check_beams,
    check_continuations,
    check_parts,
    check_returned,
)
from decodekit.decoders.beam.candidates import Candidates, extend
from decodekit.decoders.beam.search import BeamSearch
from decodekit.decoders.beam.state import BeamState, stable_prefix
from decodekit.decoders.beam.step import Ranks, advance
from decodekit.decoders.beam.stop_rules import Heuristic, StopRule
from decodekit.decoders.constrained_beam.allocation import AheadExpansion, allocate
from decodekit.decoders.constrained_beam.constraints import Constraint, read_constraints
from decodekit.decoders.constrained_beam.phrase_automaton import PhraseAutomaton, on_device
from decodekit.decoders.rows import raise_if_all_banned
from decodekit.errors import DecodekitError
from decodekit.models.model_outputs import ModelOutputs, ModelOutputsSpec
from decodekit.scorers.base import PathScorer
from decodekit.scorers.length_penalty import LengthPenalty


class ConstrainedState(NamedTuple):
    """The state of a constrained beam search.

    Attributes:
        search: The state of the beam search.
        progress: How far every row is with every constraint.
        model_scores: The model's scores of the current step; None between steps.
    """

    search: BeamState
    progress: Int64[Tensor, "rows constraints"]
    model_scores: Float32[Tensor, "rows vocab"] | None = None

    @property
    def history(self) -> History:
        """What the live hypotheses have said."""
        return self.search.history

    @property
    def done(self) -> Bool[Tensor, ""]:
        """No prompt is open, or one is stuck."""
        return self.search.done


@final
@dataclass(frozen=True)
class ConstrainedBeamSearch(Decoder[ConstrainedState]):
    """Finds texts that contain every one of some phrases: beam search with dynamic beam allocation.

    A step looks at the best continuations of all hypotheses, the best token of each, and every token that
    leads ahead with a constraint. They compete in banks, by the number of tokens that are still missing: in
    turn the best of each bank gets a place, the one that misses the fewest first. So a text is found where
    `max_new_tokens` are enough for one, unless the processors ban what it must contain. (With so many
    constraints at once that more than 8,192 states of them can be reached: enough for all side by side.)

    Nothing else is ever returned: a text ends only where every constraint is met, and hypotheses that can no
    longer meet them within `max_new_tokens` give their places up. Where there are fewer texts than were asked
    for, `valid` says so. Only new tokens count, not the prompt. For what a text must not contain there is
    `BadWords`.

    Args:
        beams: Live hypotheses, at least 1. Usual values: 5-20, at least as many as constraints.
        constraints: What every text must contain: `Phrase` and `OneOf`; one list, or one for each prompt.
        ordered: Whether they must come in the order of the list, one after the other. Otherwise they come in
            any order and may overlap, and one phrase that is there counts for all that are in it.
        scorer: What a finished hypothesis is worth.
        stop_rule: When to stop looking: `WhenFull`, `Heuristic`, `Proved` or `Patience`.
        num_return: Hypotheses to return, best first; at most as many as may finish.

    Raises:
        ValueError: If `beams` or `num_return` is out of range.
        TypeError: If `constraints`, `scorer` or `stop_rule` are something else.
        DecodekitError: In a run, if there are more beams than continuations, an id is outside the vocabulary,
            or there are not as many lists of constraints as prompts.
        DecodingError: In a run, if for some prompt every token of every beam was banned.

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
        finds constraints in the prompt too, starts a phrase that breaks off anew without what is still there
        of it, and returns texts that do not meet the constraints where few do.
    """

    beams: int
    constraints: Sequence[Constraint] | Sequence[Sequence[Constraint]]
    _: KW_ONLY
    ordered: bool = False
    scorer: PathScorer = LengthPenalty(1.0)
    stop_rule: StopRule = Heuristic()
    num_return: int = 1
    _table: PhraseAutomaton = field(init=False, repr=False, compare=False)

    batch_independent = True

    def __post_init__(self) -> None:
        who = "ConstrainedBeamSearch"
        check_beams(who, self.beams)
        check_parts(who, self.scorer, self.stop_rule)
        if not isinstance(self.ordered, bool):
            raise TypeError(f"{who}: ordered must be True or False, got {self.ordered!r:.80}.")
        most = min(self.beams, self.stop_rule.capacity(self.beams))
        finish_code = f"the hypotheses that {self.beams} beams under {self.stop_rule}"
        check_returned(who, self.num_return, most, finish_code)
        constraints = read_constraints(who, self.constraints)
        object.__setattr__(self, "constraints", constraints)  # frozen fields
        each = constraints if constraints and isinstance(constraints[0], tuple) else (constraints,)
        phrases = [[one.alternatives for one in prompt] for prompt in each]  # type: ignore[union-attr]
        quests = [[prompt] if self.ordered else [[one] for one in prompt] for prompt in phrases]
        object.__setattr__(self, "_table", PhraseAutomaton.build(quests))

    @property
    def rows_per_prompt(self) -> int:
        """A row a beam."""
        return self.beams

    @property
    def outputs_spec(self) -> ModelOutputsSpec:
        """What the scorer asks for."""
        return self.scorer.outputs_spec

    def on_model_outputs(self, model_outputs: ModelOutputs, state: ConstrainedState) -> ConstrainedState:
        """Keeps the attention, for the scorer."""
        return state._replace(search=self._search.on_model_outputs(model_outputs, state.search))

    def prepare(self, logits: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, "rows vocab"]:
        """Log-probabilities: sums over different texts must be comparable."""
        return self._search.prepare(logits)

    def init(self, history: History, limits: Limits) -> ConstrainedState:
        """One live hypothesis, the prompt, which meets nothing yet."""
        check_continuations("ConstrainedBeamSearch", self.beams, limits)
        if self._table.stride > limits.vocab:
            raise DecodekitError(
                f"ConstrainedBeamSearch: token ids must be below the vocabulary size {limits.vocab}, got "
                f"{self._table.stride - 1}."
            )
        table = on_device(self._table, history.tokens.device)
        progress = table.begin("ConstrainedBeamSearch", history)
        return ConstrainedState(self._search.init(history, limits), progress)

    def step(
        self, scores: Float32[Tensor, "rows vocab"], state: ConstrainedState
    ) -> tuple[ConstrainedState, Selection]:
        """Extend, keep what can still meet the constraints, divide the places among the banks, go on."""
        search = state.search._replace(model_scores=state.model_scores)
        table = on_device(self._table, scores.device)
        step = search.history.position - search.limits.prompt_length
        ahead = AheadExpansion(table.next_ids(state.progress).view(*search.log_probs.shape, -1))
        candidates = extend(scores, search, step, self.scorer, ahead)
        exists = candidates.log_probs > -torch.inf
        parents, tokens = candidates.entry.parent.flatten(), candidates.entry.token.flatten()
        progress = table.after(state.progress.index_select(0, parents), tokens)
        missing = table.missing(progress).view_as(exists)
        can = self._can(candidates, table.fewest(progress).view_as(exists), search, step)
        place = allocate(missing, can)
        ranks = Ranks(
            first=place < self.beams,
            order=(-place).float().masked_fill(~can, -torch.inf),
            places=torch.ones(self.beams, dtype=torch.bool, device=scores.device),
        )
        able = candidates._replace(log_probs=candidates.log_probs.masked_fill(~can, -torch.inf))
        turn = advance(able, ranks, search, self.scorer, self.stop_rule)
        nothing = search.open & ~exists.any(-1) & ~turn.state.finished.used.any(-1)
        all_banned = search.all_banned | nothing
        rows = torch.arange(len(exists), device=scores.device)[:, None] * exists.shape[1] + turn.chosen
        after = ConstrainedState(
            search=turn.state._replace(all_banned=all_banned, done=~turn.state.open.any() | all_banned.any()),
            progress=progress.index_select(0, rows.flatten()),
        )
        return after, turn.selection

    def stable_prefix(self, state: ConstrainedState) -> list[list[list[int]]]:
        """As of a beam search, once there is something to return."""
        found = state.search.finished.used.any(-1).tolist()
        prompts = stable_prefix(state.search, self.num_return)
        return [prompt if is_found else [[]] for prompt, is_found in zip(prompts, found, strict=True)]

    def finished(self, state: ConstrainedState) -> Bool[Tensor, " batch"]:
        """Prompts whose search is over."""
        return ~state.search.open

    def finalize(self, state: ConstrainedState) -> Decoded:
        """The best finished hypotheses, best first: all of them meet all constraints."""
        raise_if_all_banned(state.search.all_banned, state.history)
        return state.search.finished.decoded(state.search.limits, self.num_return)

    @property
    def _search(self) -> BeamSearch:
        """The search that it would be without constraints."""
        return BeamSearch(
            self.beams, scorer=self.scorer, stop_rule=self.stop_rule, num_return=self.num_return
        )

    @staticmethod
    def _can(
        candidates: Candidates,
        fewest: Int64[Tensor, "batch candidates"],
        search: BeamState,
        step: Int64[Tensor, ""],
    ) -> Bool[Tensor, "batch candidates"]:
        """Which candidates exist and can still meet every constraint, or have."""
        room = search.limits.max_new_tokens - (step + 1)
        exists, ends = candidates.log_probs > -torch.inf, candidates.finish_code > 0
        return exists & (fewest <= torch.where(ends, 0, room))
