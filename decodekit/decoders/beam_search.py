"""Beam search."""

from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit import rng
from decodekit.decoders.base import Decoder, Selection
from decodekit.decoders.beam_state import BeamState, Candidates, Finished, settled
from decodekit.decoders.records import Entry, Records
from decodekit.decoders.rows import raise_if_stuck
from decodekit.decoders.stop_rule import Heuristic, Standing, StopRule
from decodekit.errors import DecodekitError
from decodekit.history import History
from decodekit.limits import Limits, Stopping
from decodekit.memory import pick_memory, reorder_memory
from decodekit.output import Decoded
from decodekit.scorers.base import Scorer
from decodekit.scorers.length_penalty import LengthPenalty


@final
@dataclass(frozen=True)
class BeamSearch(Decoder[BeamState]):
    """Keeps the `beams` best unfinished hypotheses at every step, and the best finished ones.

    A step extends all live hypotheses by all tokens and looks at the best continuations. Those that
    end, and are among the best `beams`, compete by their score for a place in the finished set; the
    best `beams` that do not end go on. Scores are the model's log-probabilities after the processors.

    Args:
        beams: Live hypotheses, at least 1. Usual values: 2-10.
        scorer: What a finished hypothesis is worth.
        stop_rule: When to stop looking: `WhenFull`, `Heuristic`, `Proved` or `Patience`.
        num_return: Hypotheses to return, best first; at most as many as may finish. Where fewer
            exist, `valid` says so.
        sample: Draws the continuations to look at, without replacement, by their probability among all
            continuations of the prompt's beams, where search takes the best ones (beam sampling).
        generator: The stream of the draws; None is torch's global one.

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
        `generate(num_beams=beams, do_sample=sample)`, the same hypotheses for every length penalty and
        stop rule, and after the same seed the same draws. Where fewer hypotheses exist than beams,
        theirs repeats or goes on past the end; ours returns fewer.
    """

    beams: int
    _: KW_ONLY
    scorer: Scorer = LengthPenalty(1.0)
    stop_rule: StopRule = Heuristic()
    num_return: int = 1
    sample: bool = False
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if type(self.beams) is not int or self.beams < 1:
            raise ValueError(f"BeamSearch: beams must be an integer of at least 1, got {self.beams!r}.")
        if not isinstance(self.scorer, Scorer):
            raise TypeError(f"BeamSearch: scorer must be a Scorer, got {self.scorer!r:.80}.")
        if not isinstance(self.stop_rule, StopRule):
            raise TypeError(
                f"BeamSearch: stop_rule must be WhenFull(), Heuristic(), Proved() or Patience(...), "
                f"got {self.stop_rule!r:.80}."
            )
        if not isinstance(self.sample, bool) or not isinstance(self.generator, torch.Generator | None):
            raise ValueError(  # noqa: TRY004 - as every argument out of range
                f"BeamSearch: sample must be True or False, and generator a torch.Generator, got "
                f"{self.sample!r:.80} and {self.generator!r:.80}."
            )
        if self.generator is not None and not self.sample:
            raise ValueError("BeamSearch: a generator draws, and without sample=True nothing is drawn.")
        # Only `beams` hypotheses can finish in one step, so more than that is not promised.
        most = min(self.beams, self.stop_rule.capacity(self.beams))
        if type(self.num_return) is not int or not 1 <= self.num_return <= most:
            raise ValueError(
                f"BeamSearch: num_return must be an integer from 1 to {most}, the hypotheses that "
                f"{self.beams} beams under {self.stop_rule} finish, got {self.num_return!r}."
            )

    @property
    def rows_per_prompt(self) -> int:
        """A row a beam."""
        return self.beams

    def prepare(self, logits: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, "rows vocab"]:
        """Log-probabilities: sums over different texts must be comparable."""
        return logits.log_softmax(-1)

    def observe(self, scores: Float32[Tensor, "rows vocab"], state: BeamState) -> BeamState:
        """Keeps the model's log-probabilities, to report the chosen tokens'."""
        return state._replace(observed=scores)

    def init(self, history: History, limits: Limits) -> BeamState:
        """One live hypothesis, the prompt; the other beams do not exist yet."""
        continuations = limits.vocab**limits.max_new_tokens
        if self.beams > continuations:
            raise DecodekitError(
                f"BeamSearch: there must be at least as many continuations as beams, got "
                f"{self.beams} beams for {limits.vocab} tokens ** {limits.max_new_tokens} steps = "
                f"{continuations}. Use fewer beams."
            )
        device, batch = history.tokens.device, len(history.tokens) // self.beams
        exists = torch.arange(self.beams, device=device) == 0
        slots, new = self.stop_rule.capacity(self.beams), limits.max_new_tokens
        nothing = torch.zeros(batch, slots, dtype=torch.long, device=device)
        return BeamState(
            history=history,
            limits=limits,
            observed=None,
            log_probs=_worthless(batch, self.beams, device).masked_fill(exists, 0.0),
            live=Records.empty(batch, self.beams, new, device),
            stopping=limits.start(history),
            finished=Finished(
                records=Records.empty(batch, slots, new, device),
                lengths=nothing,
                scores=_worthless(batch, slots, device),
                why=nothing.clone(),
                used=nothing.bool(),
            ),
            open=torch.ones(batch, dtype=torch.bool, device=device),
            stuck=torch.zeros(batch, dtype=torch.bool, device=device),
            done=torch.zeros((), dtype=torch.bool, device=device),
        )

    def step(self, scores: Float32[Tensor, "rows vocab"], state: BeamState) -> tuple[BeamState, Selection]:
        """Extend, retire what ended, go on with the rest, see whether it is worth it."""
        step = state.history.position - state.limits.prompt_length
        candidates = self._extend(scores, state)
        finished = self._retire(candidates, state, step)
        # Go on: the best that did not end.
        log_probs, chosen = candidates.log_probs.masked_fill(candidates.why > 0, -torch.inf).topk(self.beams)
        source_beams = candidates.source_beams.gather(1, chosen)
        entry = candidates.entry.take(chosen)
        source_rows, tokens = entry.parent.flatten(), entry.token.flatten()
        goes_on = state.open & self._goes_on(log_probs, finished, state, step)
        stuck = state.stuck | ((log_probs[:, 0] == -torch.inf) & ~finished.used.any(-1))
        after = state._replace(
            history=state.history.take(source_rows).append(tokens),
            observed=None,
            log_probs=log_probs,
            live=state.live.take(source_beams).write(step, entry),
            stopping=pick_memory(candidates.stopping, chosen),
            finished=finished,
            open=goes_on,
            stuck=stuck,
            done=~goes_on.any() | stuck.any(),
        )
        return after, Selection(tokens, source_rows)

    def _extend(self, scores: Float32[Tensor, "rows vocab"], state: BeamState) -> Candidates:
        """The best continuations: enough that `beams` of them do not end, whatever the others do."""
        limits, vocab = state.limits, scores.shape[-1]
        batch, beams = state.log_probs.shape
        number = min(max(2, 1 + len(limits.end_ids)) * beams, beams * vocab)
        # [rows vocab] -> [batch beams*vocab]
        total = scores.view(batch, beams, vocab) + state.log_probs[..., None]
        log_probs, flat = self._pick(total.view(batch, -1), number)
        source_beams, tokens = flat // vocab, flat % vocab
        first_rows = torch.arange(batch, device=scores.device)[:, None] * beams
        own = torch.zeros_like(log_probs)
        if state.observed is not None:
            own = state.observed.reshape(batch, -1).gather(1, flat)
        entry = Entry(tokens, own, first_rows + source_beams)
        why, stopping = self._finish(entry, state)
        return Candidates(log_probs, source_beams, entry, why, stopping)

    def _pick(
        self, log_probs: Float32[Tensor, "batch continuations"], number: int
    ) -> tuple[Float32[Tensor, "batch candidates"], Int64[Tensor, "batch candidates"]]:
        """The continuations to look at: the best, or drawn, in the order of the draws."""
        if not self.sample:
            best = log_probs.topk(number)
            return best.values, best.indices
        drawn = rng.draw_several(log_probs.softmax(-1), number, self.generator)
        return log_probs.gather(1, drawn), drawn

    def _finish(
        self, entry: Entry, state: BeamState
    ) -> tuple[Int64[Tensor, "batch candidates"], list[Stopping]]:
        """What finishes each candidate, asked as hypotheses are: as many at a time as there are beams."""
        limits = state.limits
        if not limits.criteria:
            return limits.finish_token(entry.token, state.history.position + 1), [state.stopping]
        why, stopping = [], []
        for first in range(0, entry.token.shape[1], self.beams):
            tokens, log_probs, source_rows = (
                field[:, first : first + self.beams].flatten() for field in entry
            )
            history = state.history.take(source_rows).append(tokens)
            fired, after = limits.finish(history, log_probs, reorder_memory(state.stopping, source_rows))
            why.append(fired.view(-1, self.beams))
            stopping.append(after)
        return torch.cat(why, 1), stopping

    def _retire(self, candidates: Candidates, state: BeamState, step: Int64[Tensor, ""]) -> Finished:
        """The finished set after the step: the best of what it had and of what just ended."""
        old, slots = state.finished, state.finished.scores.shape[1]
        # The candidates after the first `beams` only stand by, in case those before them end.
        rank = torch.arange(candidates.log_probs.shape[1], device=step.device)
        enters = (candidates.why > 0) & (rank < self.beams) & state.open[:, None]
        enters = enters & (candidates.log_probs > -torch.inf)
        lengths = (step + 1).expand_as(candidates.source_beams)
        new_scores = self.scorer(candidates.log_probs, lengths).masked_fill(~enters, -torch.inf)
        scores, chosen = torch.cat([old.scores, new_scores], 1).topk(slots)
        is_new = chosen >= slots
        candidate = (chosen - slots).clamp(min=0)
        # A hypothesis that just ended is a live one and one token more: [batch slots+beams]
        origin = torch.where(is_new, slots + candidates.source_beams.gather(1, candidate), chosen)
        records = old.records.beside(state.live).take(origin)
        return Finished(
            records=records.write(step, candidates.entry.take(candidate), is_new),
            lengths=torch.cat([old.lengths, lengths], 1).gather(1, chosen),
            scores=scores,
            why=torch.cat([old.why, candidates.why], 1).gather(1, chosen),
            used=torch.cat([old.used, enters], 1).gather(1, chosen),
        )

    def _goes_on(
        self,
        log_probs: Float32[Tensor, "batch beams"],
        finished: Finished,
        state: BeamState,
        step: Int64[Tensor, ""],
    ) -> Bool[Tensor, " batch"]:
        """Whether a live hypothesis is left, and the stop rule wants it continued."""
        best_live = log_probs[:, 0]
        standing = Standing(
            best_live=best_live,
            lengths=(step + 1).expand_as(best_live),
            worst_finished=finished.scores[:, -1],
            full=finished.used.all(-1),
            max_length=state.limits.max_new_tokens,
            scorer=self.scorer,
        )
        return (best_live > -torch.inf) & self.stop_rule.goes_on(standing)

    def settled(self, state: BeamState) -> list[list[list[int]]]:
        """What all live and finished hypotheses of a prompt begin with: any result will too."""
        return settled(state, self.num_return)

    def finalize(self, state: BeamState) -> Decoded:
        """The best finished hypotheses, best first."""
        finished, limits = state.finished, state.limits
        raise_if_stuck(state.stuck)
        kept = self.num_return
        lengths = finished.lengths[:, :kept].masked_fill(~finished.used[:, :kept], 0)
        new = int(lengths.max())
        said = torch.arange(new, device=lengths.device) < lengths[..., None]
        tokens, log_probs, parents = (buffer[:, :kept, :new] for buffer in finished.records)
        valid = finished.used[:, :kept]
        return Decoded(
            tokens=tokens.masked_fill(~said, limits.pad_id),
            lengths=lengths,
            finish_reason=[
                [reason if is_valid else "missing" for reason, is_valid in zip(*row, strict=True)]
                for row in zip(limits.reasons(finished.why[:, :kept]), valid.tolist(), strict=True)
            ],
            valid=valid,
            token_log_probs=log_probs.masked_fill(~said, 0.0),
            score=finished.scores[:, :kept],
            parents=parents.masked_fill(~said, -1),
            pad_id=limits.pad_id,
            why=finished.why[:, :kept],
        )


def _worthless(batch: int, hyps: int, device: torch.device) -> Float32[Tensor, "batch hyps"]:
    return torch.full((batch, hyps), -torch.inf, dtype=torch.float32, device=device)
