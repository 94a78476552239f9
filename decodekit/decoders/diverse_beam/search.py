"""Diverse beam search."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float32, Int64, Shaped
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.result import Decoded
from decodekit.core.validation import is_count
from decodekit.decoders.base import Decoder, Selection
from decodekit.decoders.beam.arguments import (
    check_beams,
    check_continuations,
    check_parts,
    check_returned,
)
from decodekit.decoders.beam.finished import Finished
from decodekit.decoders.beam.records import Records
from decodekit.decoders.beam.search import BeamSearch
from decodekit.decoders.beam.state import BeamState
from decodekit.decoders.beam.stop_rules import Heuristic, StopRule
from decodekit.decoders.diverse_beam.diversity import Diversity, EmittedTokens, Hamming
from decodekit.decoders.rows import raise_if_all_banned
from decodekit.models.model_outputs import ModelOutputs, ModelOutputsSpec
from decodekit.scorers.base import PathScorer
from decodekit.scorers.length_penalty import LengthPenalty


class DiverseState(NamedTuple):
    """The state of a diverse beam search.

    Attributes:
        history: What the live hypotheses have said; a prompt's groups one after the other.
        groups: The state of each group's search.
        done: No prompt is open in any group, or one is stuck in all of them.
        model_scores: The model's scores of the current step; None between steps.
    """

    history: History
    groups: tuple[BeamState, ...]
    done: Bool[Tensor, ""]
    model_scores: Float32[Tensor, "rows vocab"] | None = None


@final
@dataclass(frozen=True)
class DiverseBeamSearch(Decoder[DiverseState]):
    """Searches with several groups of beams, each of which is kept from what the groups before it say.

    In every step the groups take turns. Each is a beam search of `beams / groups` beams with finished
    hypotheses of its own, over log-probabilities from which `diversity` has taken what earlier groups make a
    token cost. Returned are the best of all groups together. Scores hold the penalties; `token_log_probs` are
    the model's. Two groups may find the same text: the penalties make that rare and do not rule it out.

    Args:
        beams: Live hypotheses of all groups together, at least 1. Usual values: 4-20.
        groups: How many groups; they are equally large, so it divides `beams`.
        diversity: What a token costs: `Hamming` or `NGramDiversity`.
        scorer: What a finished hypothesis is worth.
        stop_rule: When a group stops looking: `WhenFull`, `Heuristic`, `Proved` or `Patience`.
        num_return: Hypotheses to return, best first; at most as many as may finish.

    Raises:
        ValueError: If `beams`, `groups` or `num_return` is out of range.
        TypeError: If `diversity`, `scorer` or `stop_rule` are something else.
        DecodekitError: In a run, if a group has more beams than there are continuations.
        DecodingError: In a run, if for some prompt every token of every beam was banned.

    Example:
        >>> search = dk.DiverseBeamSearch(2, 2, diversity=Hamming(5.0), num_return=2)
        >>> dk.decode(dk.load(), "Once upon a time there was", search, max_new_tokens=1).texts
        [[' a', ' no']]

    Source:
        Vijayakumar et al., 2016, https://arxiv.org/abs/1610.02424, Algorithm 1.

    Hugging Face:
        `generate(num_beams=beams, num_beam_groups=groups, diversity_penalty=strength)` of transformers up to
        4.55, the same texts, each once where theirs repeats what several groups have found. Theirs takes the
        penalty off before other processors instead of after them, and counts the padding of groups that have
        finished as tokens they say.
    """

    beams: int
    groups: int
    _: KW_ONLY
    diversity: Diversity = Hamming(0.5)
    scorer: PathScorer = LengthPenalty(1.0)
    stop_rule: StopRule = Heuristic()
    num_return: int = 1

    batch_independent = True

    def __post_init__(self) -> None:
        who = "DiverseBeamSearch"
        check_beams(who, self.beams)
        if not is_count(self.groups, 1) or self.beams % self.groups:
            raise ValueError(
                f"{who}: groups must be an integer of at least 1 that divides beams, got {self.groups!r} for "
                f"{self.beams} beams."
            )
        check_parts(who, self.scorer, self.stop_rule)
        if not isinstance(self.diversity, Diversity):
            raise TypeError(
                f"{who}: diversity must be a Diversity such as Hamming(0.5), got {self.diversity!r:.80}."
            )
        most = self.groups * min(self._width, self.stop_rule.capacity(self._width))
        finish_code = (
            f"the hypotheses that {self.groups} groups of {self._width} beams under {self.stop_rule}"
        )
        check_returned(who, self.num_return, most, finish_code)

    @property
    def rows_per_prompt(self) -> int:
        """A row a beam."""
        return self.beams

    @property
    def outputs_spec(self) -> ModelOutputsSpec:
        """What the scorer asks for."""
        return self.scorer.outputs_spec

    def on_model_outputs(self, model_outputs: ModelOutputs, state: DiverseState) -> DiverseState:
        """Keeps the attention, for the scorer."""
        attention = model_outputs.attention
        if attention is None:
            return state
        parts = zip(state.groups, self._parts(attention), strict=True)
        return state._replace(groups=tuple(group._replace(attention=part) for group, part in parts))

    def prepare(self, logits: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, "rows vocab"]:
        """Log-probabilities: sums over different texts must be comparable."""
        return logits.log_softmax(-1)

    def init(self, history: History, limits: Limits) -> DiverseState:
        """One live hypothesis a group, the prompt."""
        check_continuations("DiverseBeamSearch", self._width, limits)
        rows = torch.arange(len(history.tokens), device=history.tokens.device)
        groups = tuple(
            self._search.init(history.part(part, self._width), limits) for part in self._parts(rows)
        )
        return DiverseState(history, groups, groups[0].done.clone())

    def step(
        self, scores: Float32[Tensor, "rows vocab"], state: DiverseState
    ) -> tuple[DiverseState, Selection]:
        """Each group's turn, with what those before it have just said in mind."""
        step = state.history.position - state.groups[0].limits.prompt_length
        after: list[BeamState] = []
        said: list[EmittedTokens] = []
        selections: list[tuple[Tensor, Tensor]] = []
        groups = state.groups
        if state.model_scores is not None:
            parts = zip(groups, self._parts(state.model_scores), strict=True)
            groups = tuple(group._replace(model_scores=part) for group, part in parts)
        for number, (group, own) in enumerate(zip(groups, self._parts(scores), strict=True)):
            taken = own
            if said:
                live = (group.log_probs > -torch.inf) & group.open[:, None]
                beams = EmittedTokens(group.live.tokens, step * live, live)
                costs = self.diversity.penalties(beams, _together(said), step, own.shape[-1])
                taken = own - costs.flatten(0, 1)
            turn = self._search.turn(taken, group, shows_ended=True)
            after.append(turn.state)
            is_open = group.open[:, None]
            said.append(
                EmittedTokens(turn.state.live.tokens, (step + 1) * (turn.goes & is_open), turn.says & is_open)
            )
            said.append(_finished(turn.state))
            selections.append((turn.tokens, self._rows(turn.source_rows, number)))
        new, sources = (self._whole(parts) for parts in zip(*selections, strict=True))
        all_banned = torch.stack([group.all_banned for group in after]).all(0)
        any_open = torch.stack([group.open for group in after]).any()
        history = state.history.take(sources).append(new)
        return DiverseState(history, tuple(after), ~any_open | all_banned.any()), Selection(new, sources)

    def finished(self, state: DiverseState) -> Bool[Tensor, " batch"]:
        """Prompts whose search is over in every group."""
        return ~torch.stack([group.open for group in state.groups]).any(0)

    def finalize(self, state: DiverseState) -> Decoded:
        """The best finished hypotheses of all groups, best first."""
        raise_if_all_banned(torch.stack([group.all_banned for group in state.groups]).all(0), state.history)
        finished = [
            group.finished._replace(
                records=group.finished.records._replace(
                    parents=self._rows(group.finished.records.parents, number)
                )
            )
            for number, group in enumerate(state.groups)
        ]
        return _best(finished).decoded(state.groups[0].limits, self.num_return)

    @property
    def _width(self) -> int:
        """Beams of a group."""
        return self.beams // self.groups

    @property
    def _search(self) -> BeamSearch:
        """The search of one group."""
        return BeamSearch(self._width, scorer=self.scorer, stop_rule=self.stop_rule)

    def _parts(self, values: Shaped[Tensor, "rows *rest"]) -> list[Shaped[Tensor, "part *rest"]]:
        """What stands on the rows of each group."""
        # [rows ...] -> [batch groups width ...] -> a group each
        by_group = values.view(-1, self.groups, self._width, *values.shape[1:])
        return [part.flatten(0, 1) for part in by_group.unbind(1)]

    def _whole(self, parts: Sequence[Shaped[Tensor, " part"]]) -> Shaped[Tensor, " rows"]:
        """What stands on all rows, from what stands on those of each group."""
        return torch.stack([part.view(-1, self._width) for part in parts], 1).flatten()

    def _rows(self, rows: Int64[Tensor, "*shape"], group: int) -> Int64[Tensor, "*shape"]:
        """Where rows of a group's search stand among all rows."""
        return rows // self._width * self.beams + group * self._width + rows % self._width


def _finished(group: BeamState) -> EmittedTokens:
    """What a group's finished hypotheses have said."""
    finished = group.finished
    lengths = finished.lengths.masked_fill(~finished.used, 0)
    return EmittedTokens(finished.records.tokens, lengths, torch.zeros_like(finished.used))


def _together(several: Sequence[EmittedTokens]) -> EmittedTokens:
    """All hypotheses of each prompt."""
    return EmittedTokens(*(torch.cat(parts, 1) for parts in zip(*several, strict=True)))


def _best(several: Sequence[Finished]) -> Finished:
    """The finished hypotheses of all groups, best first; what several groups have found, once."""
    scores = torch.cat([one.scores for one in several], 1)
    scores, order = scores.masked_fill(_found_before(several), -torch.inf).sort(descending=True, stable=True)

    def ordered(name: str) -> Tensor:
        return torch.cat([getattr(one, name) for one in several], 1).gather(1, order)

    records = Records(*(torch.cat(parts, 1) for parts in zip(*(one.records for one in several), strict=True)))
    return Finished(
        records=records.take(order),
        lengths=ordered("lengths"),
        scores=scores,
        finish_code=ordered("finish_code"),
        used=ordered("used") & (scores > -torch.inf),
    )


def _found_before(several: Sequence[Finished]) -> Bool[Tensor, "batch slots"]:
    """Which hypotheses another slot holds too, with a better score, or with the same one and earlier."""
    lengths, scores = (
        torch.cat([getattr(one, name) for one in several], 1) for name in ("lengths", "scores")
    )
    tokens = torch.cat([one.records.tokens for one in several], 1)
    said = torch.arange(tokens.shape[-1], device=tokens.device) < lengths[..., None]
    tokens = tokens.masked_fill(~said, -1)
    same = (tokens[:, :, None] == tokens[:, None]).all(-1)  # [batch slots slots]
    slots = torch.arange(scores.shape[1], device=scores.device)
    first = slots[:, None] > slots
    better = (scores[:, None] > scores[..., None]) | ((scores[:, None] == scores[..., None]) & first)
    return (same & better).any(-1)
