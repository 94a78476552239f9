"""Beam search."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.result import Decoded
from decodekit.core.validation import is_count
from decodekit.decoders.base import Decoder, Selection
from decodekit.decoders.beam.arguments import check_continuations, check_parts, check_returned
from decodekit.decoders.beam.candidates import extend
from decodekit.decoders.beam.certificate import Certificate
from decodekit.decoders.beam.expansion import BestExpansion, Expansion
from decodekit.decoders.beam.finished import Finished, empty_scores
from decodekit.decoders.beam.proof import update_pruned_bound
from decodekit.decoders.beam.records import Records
from decodekit.decoders.beam.state import BeamState, stable_prefix
from decodekit.decoders.beam.step import Advance, Ranks, advance
from decodekit.decoders.beam.stop_rules import Heuristic, StopRule
from decodekit.decoders.rows import raise_if_all_banned
from decodekit.models.model_outputs import ModelOutputs, ModelOutputsSpec
from decodekit.processors.base import device_ids
from decodekit.scorers.base import PathScorer
from decodekit.scorers.length_penalty import LengthPenalty


@final
@dataclass(frozen=True)
class BeamSearch(Decoder[BeamState, Certificate]):
    """Keeps the `beams` best unfinished hypotheses at every step, and the best finished ones.

    A step extends all live hypotheses by all tokens and looks at the best continuations. Those that
    end, and are among the best `beams`, compete by their score for a place in the finished set; the
    best `beams` that do not end go on. Scores are the model's log-probabilities after the processors.

    `Decoded.report` is a `Certificate`: whether what was returned is proved to be the best there is, because
    nothing that the search let go of could have scored more.

    Args:
        beams: Live hypotheses, at least 1; or how many at each step, the last number from there on. Usual
            values: 2-10.
        scorer: What a finished hypothesis is worth.
        stop_rule: When to stop looking: `WhenFull`, `Heuristic`, `Proved` or `Patience`.
        expansion: Which continuations a step looks at: `BestExpansion`, `SampledExpansion` (beam sampling),
            `PerNodeExpansion` or `DiverseSiblings`.
        num_return: Hypotheses to return, best first; at most as many as may finish. Where fewer
            exist, `valid` says so.

    Raises:
        ValueError: If `beams` or `num_return` is out of range.
        DecodekitError: In a run, if there are more beams than continuations.
        DecodingError: In a run, if for some prompt every token of every beam was banned.

    Example:
        >>> dk.decode(dk.load(), "Once upon a time there was", dk.BeamSearch(4), max_new_tokens=1).texts
        [[' a']]

    Source:
        Lowerre, 1976, *The HARPY speech recognition system*; in the form of Wu et al., 2016,
        https://arxiv.org/abs/1609.08144, section 7.

    Hugging Face:
        `generate(num_beams=beams)`, the same hypotheses for every length penalty and stop rule. Where fewer
        hypotheses exist than beams, theirs repeats or goes on past the end; ours returns fewer.
    """

    beams: int | Sequence[int]
    _: KW_ONLY
    scorer: PathScorer = LengthPenalty(1.0)
    stop_rule: StopRule = Heuristic()
    expansion: Expansion = BestExpansion()
    num_return: int = 1

    batch_independent = True

    def __post_init__(self) -> None:
        widths = (self.beams,) if not isinstance(self.beams, Sequence) else tuple(self.beams)
        if not widths or isinstance(self.beams, str) or not all(is_count(width, 1) for width in widths):
            raise ValueError(
                f"BeamSearch: beams must be an integer of at least 1, or one a step, got {self.beams!r:.80}."
            )
        if isinstance(self.beams, Sequence):
            object.__setattr__(self, "beams", widths)  # the way to set a frozen field
        check_parts("BeamSearch", self.scorer, self.stop_rule)
        if not isinstance(self.expansion, Expansion):
            raise TypeError(
                "BeamSearch: expansion must be an Expansion such as BestExpansion(), got "
                f"{self.expansion!r:.80}."
            )
        # Only `beams` hypotheses can finish in one step, so more than that is not promised.
        most = min(widths[-1], self.stop_rule.capacity(max(widths)))
        finish_code = f"the hypotheses that {widths[-1]} beams under {self.stop_rule}"
        check_returned("BeamSearch", self.num_return, most, finish_code)

    @property
    def rows_per_prompt(self) -> int:
        """A row a beam."""
        return max(self.beams) if isinstance(self.beams, Sequence) else self.beams

    @property
    def outputs_spec(self) -> ModelOutputsSpec:
        """What the scorer asks for."""
        return self.scorer.outputs_spec

    def on_model_outputs(self, model_outputs: ModelOutputs, state: BeamState) -> BeamState:
        """Keeps the attention, for the scorer."""
        return state._replace(attention=model_outputs.attention)

    def prepare(self, logits: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, "rows vocab"]:
        """Log-probabilities: sums over different texts must be comparable."""
        return logits.log_softmax(-1)

    def init(self, history: History, limits: Limits) -> BeamState:
        """One live hypothesis, the prompt; the other beams do not exist yet."""
        beams = self.rows_per_prompt
        check_continuations("BeamSearch", beams, limits)
        device, batch = history.tokens.device, len(history.tokens) // beams
        exists = torch.arange(beams, device=device) == 0
        new, slots = limits.max_new_tokens, self.stop_rule.capacity(beams)
        log_probs = empty_scores(batch, beams, device).masked_fill(exists, 0.0)
        return BeamState(
            history=history,
            limits=limits,
            model_scores=None,
            attention=None,
            log_probs=log_probs,
            guides=log_probs.clone() if self.scorer.guides else None,
            live=Records.empty(batch, beams, new, device),
            memory=self.scorer.init(history, limits),
            stopping=limits.start(history),
            finished=Finished.empty(batch, slots, new, device),
            pruned_bound=empty_scores(batch, 1, device)[:, 0].clone(),
            open=torch.ones(batch, dtype=torch.bool, device=device),
            all_banned=torch.zeros(batch, dtype=torch.bool, device=device),
            done=torch.zeros((), dtype=torch.bool, device=device),
        )

    def step(self, scores: Float32[Tensor, "rows vocab"], state: BeamState) -> tuple[BeamState, Selection]:
        """Extend, retire what ended, go on with the rest, see whether it is worth it."""
        turn = self.turn(scores, state)
        return turn.state, turn.selection

    def turn(
        self, scores: Float32[Tensor, "rows vocab"], state: BeamState, *, shows_ended: bool = False
    ) -> Advance:
        """A step, and what became of the continuations that it looked at.

        Args:
            scores: What each token adds.
            state: Before the step.
            shows_ended: Whether the stop rule is shown what has just ended too.
        """
        step = state.history.position - state.limits.prompt_length
        candidates = extend(scores, state, step, self.scorer, self.expansion)
        # The candidates after the first `beams` only stand by, in case those before them end.
        ranks = Ranks(
            first=self._within(candidates.log_probs.shape[1], step),
            order=candidates.priority,
            places=self._within(self.rows_per_prompt, step),
            shows_ended=shows_ended,
        )
        turn = advance(candidates, ranks, state, self.scorer, self.stop_rule)
        after = turn.state
        all_banned = state.all_banned | (~turn.goes.any(-1) & ~after.finished.used.any(-1))
        pruned_bound = update_pruned_bound(
            candidates, turn.dropped, scores, state, self.scorer, self.expansion
        ).maximum(turn.left)
        after = after._replace(
            pruned_bound=torch.where(
                state.open & ~after.open, pruned_bound.maximum(turn.status.bound()), pruned_bound
            ),
            all_banned=all_banned,
            done=~after.open.any() | all_banned.any(),
        )
        return turn._replace(state=after)

    def stable_prefix(self, state: BeamState) -> list[list[list[int]]]:
        """What all live and finished hypotheses of a prompt begin with: any result will too."""
        return stable_prefix(state, self.num_return)

    def finished(self, state: BeamState) -> Bool[Tensor, " batch"]:
        """Prompts whose search is over."""
        return ~state.open

    def finalize(self, state: BeamState) -> Decoded[Certificate]:
        """The best finished hypotheses, best first, and whether they are proved to be the best."""
        raise_if_all_banned(state.all_banned, state.history)
        decoded = state.finished.decoded(state.limits, self.num_return)
        # What is not returned was let go, or is finished and comes next.
        worst, *others = state.finished.scores[:, self.num_return - 1 :].unbind(1)
        bound = torch.stack([state.pruned_bound, *others[:1]]).amax(0)
        return decoded.with_report(Certificate(bound=bound, worst=worst))

    def _within(self, number: int, step: Int64[Tensor, ""]) -> Bool[Tensor, " number"]:
        """Which of some ranks are among the beams of this step."""
        rank = torch.arange(number, device=step.device)
        if not isinstance(self.beams, Sequence):
            return rank < self.beams
        widths = device_ids(self.beams, step.device)
        return rank < widths.index_select(0, step.clamp(max=len(widths) - 1).view(1))
