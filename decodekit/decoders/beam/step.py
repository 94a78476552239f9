"""The parts of a beam search step: candidates, the finished set, and the beams of the next step."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.limits import Stopping
from decodekit.core.pytrees import Memory, pick_memory, reorder_memory
from decodekit.decoders.beam.expansion import BestExpansion, Expansion, ExpansionResult
from decodekit.decoders.beam.state import BeamState, Entry, Finished
from decodekit.errors import DecodekitError
from decodekit.processors.base import Scores
from decodekit.scorers.base import ExtendedHypotheses, PathScorer


class Candidates(NamedTuple):
    """One-token continuations of each prompt's live hypotheses, best first."""

    log_probs: Float32[Tensor, "batch candidates"]  # sums of processed scores
    priority: Float32[Tensor, "batch candidates"]  # ranks those that go on, greatest first
    source_beams: Int64[Tensor, "batch candidates"]  # the beam that each continues, within its prompt
    entry: Entry
    scores: Float32[Tensor, "batch candidates"]  # of each, if it ends here
    bounds: Float32[Tensor, "batch candidates"]  # on the score of each and of all its continuations
    memory: Memory  # the scorer's
    finish_code: Int64[Tensor, "batch candidates"]  # 0 if not ended
    stopping: list[Stopping]  # of `beams` candidates of each prompt at a time

    @property
    def valid(self) -> Bool[Tensor, "batch candidates"]:
        """True for candidates that are allowed and continue a live hypothesis."""
        return self.log_probs > -torch.inf

    @property
    def ended(self) -> Bool[Tensor, "batch candidates"]:
        """True for candidates whose new token is their last."""
        return self.finish_code > 0


def extend(scores: Scores, state: BeamState, scorer: PathScorer, expansion: Expansion) -> Candidates:
    """Continue every live hypothesis by every token; the expansion picks the candidates."""
    batch, beams = state.log_probs.shape
    vocab = scores.shape[-1]
    added = scores.view(batch, beams, vocab)  # [rows vocab] -> [batch beams vocab]
    totals = state.log_probs if state.partial_scores is None else state.partial_scores
    sums = added + totals[..., None]
    indices, priority = _pick(expansion, sums, state)
    source_beams, tokens = indices // vocab, indices % vocab
    sums, added = (values.flatten(1).gather(1, indices) for values in (sums, added))
    log_probs = sums if state.partial_scores is None else state.log_probs.gather(1, source_beams) + added
    log_probs = log_probs.masked_fill(priority == -torch.inf, -torch.inf)  # left out by the expansion

    source_rows = rows_of(source_beams, beams)
    memory = _update_memory(Entry(tokens, added, source_rows), state, scorer)
    model_log_probs = torch.zeros_like(log_probs)
    if state.model_scores is not None:
        model_log_probs = state.model_scores.reshape(batch, -1).gather(1, indices)
    entry = Entry(tokens, model_log_probs, source_rows)
    lengths = (state.step + 1).expand(log_probs.numel())
    if scorer.stepwise:
        partial_scores = scorer.partial_score(log_probs.flatten(), lengths, memory).view_as(log_probs)
        # Keep the expansion's penalties, and leave out what it has left out.
        priority = torch.where(log_probs > -torch.inf, partial_scores + (priority - sums), -torch.inf)
        priority, order = priority.sort(descending=True, stable=True)
        log_probs, source_beams = log_probs.gather(1, order), source_beams.gather(1, order)
        entry = entry.take(order)
        memory = reorder_memory(memory, rows_of(order, order.shape[1]).flatten())

    flat, max_length = log_probs.flatten(), state.limits.max_new_tokens
    finish_code, stopping = _finish(entry, state)
    return Candidates(
        log_probs=log_probs,
        priority=priority,
        source_beams=source_beams,
        entry=entry,
        scores=scorer.score(flat, lengths, memory).view_as(log_probs),
        bounds=scorer.upper_bound(flat, lengths, max_length, memory).view_as(log_probs),
        memory=memory,
        finish_code=finish_code,
        stopping=stopping,
    )


def retire(
    candidates: Candidates, ended: Bool[Tensor, "batch candidates"], state: BeamState
) -> tuple[Finished, Float32[Tensor, " batch"]]:
    """Let the candidates that ended compete for places in the finished set.

    Returns:
        The new finished set, and the best score that has no place in it.
    """
    old, slots = state.finished, state.finished.scores.shape[1]
    scores = torch.cat([old.scores, candidates.scores.masked_fill(~ended, -torch.inf)], 1)
    # A stable sort keeps the order of ties, however many further steps are taken, and puts hypotheses that
    # score minus infinity, which are not allowed, after the empty slots.
    best, chosen = (part[:, :slots] for part in scores.sort(descending=True, stable=True))
    is_new, candidate = chosen >= slots, (chosen - slots).clamp(min=0)
    # A new finished hypothesis is a live one with one more token: [batch slots+beams]
    origin = torch.where(is_new, slots + candidates.source_beams.gather(1, candidate), chosen)
    records = old.records.concat(state.live).take(origin)
    lengths = (state.step + 1).expand_as(candidates.source_beams)
    finished = Finished(
        records=records.write(state.step, candidates.entry.take(candidate), is_new),
        lengths=torch.cat([old.lengths, lengths], 1).gather(1, chosen),
        scores=best,
        finish_code=torch.cat([old.finish_code, candidates.finish_code], 1).gather(1, chosen),
        used=torch.cat([old.used, ended], 1).gather(1, chosen),
    )
    return finished, scores.scatter(1, chosen, -torch.inf).amax(-1)


def advance(
    candidates: Candidates,
    chosen: Int64[Tensor, "batch beams"],
    alive: Bool[Tensor, "batch beams"],
    finished: Finished,
    state: BeamState,
) -> tuple[BeamState, Int64[Tensor, " rows"], Int64[Tensor, " rows"]]:
    """Make the chosen candidates the beams of the next step; beams that are not alive are unused.

    Returns:
        The new state, and for every row its new token and the row it continues.
    """
    entry = candidates.entry.take(chosen)
    tokens, source_rows = entry.tokens.flatten(), entry.parents.flatten()
    partial_scores = candidates.priority.gather(1, chosen).masked_fill(~alive, -torch.inf)
    rows = rows_of(chosen, candidates.log_probs.shape[1]).flatten()
    after = state._replace(
        history=state.history.take(source_rows).append(tokens),
        model_scores=None,
        attention=None,
        log_probs=candidates.log_probs.gather(1, chosen).masked_fill(~alive, -torch.inf),
        partial_scores=None if state.partial_scores is None else partial_scores,
        live=state.live.take(candidates.source_beams.gather(1, chosen)).write(state.step, entry),
        memory=reorder_memory(candidates.memory, rows),
        stopping=pick_memory(candidates.stopping, chosen),
        finished=finished,
    )
    return after, tokens, source_rows


def rows_of(hyps: Int64[Tensor, "batch chosen"], hyps_per_prompt: int) -> Int64[Tensor, "batch chosen"]:
    """Indices among the hypotheses of all prompts, of hypotheses numbered within their prompt."""
    return torch.arange(len(hyps), device=hyps.device)[:, None] * hyps_per_prompt + hyps


def _pick(
    expansion: Expansion, sums: Float32[Tensor, "batch beams vocab"], state: BeamState
) -> ExpansionResult:
    """The continuations that the expansion picks: enough to fill the beams if all end ids are among them."""
    _, beams, vocab = sums.shape
    per_beam = max(2, 1 + len(state.limits.end_ids))
    result = expansion.pick(sums, min(per_beam, vocab) * beams)
    number = result[0].shape[1]
    if number == 0 or number % beams:
        raise DecodekitError(
            f"BeamSearch: an expansion must pick as many continuations as beams, or a multiple of that, and "
            f"{expansion!r} picked {number} for {beams} beams."
        )
    return result


def _update_memory(new: Entry, state: BeamState, scorer: PathScorer) -> Memory:
    """The scorer's memory of the candidates, prompt-major."""
    if not scorer.stateful:
        return state.memory
    tokens, log_probs, source_rows = (field.flatten() for field in new)
    attention = None if state.attention is None else state.attention.index_select(0, source_rows)
    extended = ExtendedHypotheses(state.history, source_rows, tokens, log_probs, attention)
    return scorer.update(extended, reorder_memory(state.memory, source_rows))


def _finish(entry: Entry, state: BeamState) -> tuple[Int64[Tensor, "batch candidates"], list[Stopping]]:
    """The finish code of each candidate, and the criteria's memory of them, `beams` candidates at a time."""
    limits, beams = state.limits, state.log_probs.shape[1]
    if not limits.criteria:
        return limits.finish_token(entry.tokens, state.history.position + 1), [state.stopping]
    finish_codes, memories = [], []
    for first in range(0, entry.tokens.shape[1], beams):
        tokens, log_probs, source_rows = (field[:, first : first + beams].flatten() for field in entry)
        history = state.history.take(source_rows).append(tokens)
        codes, stopping = limits.finish(history, log_probs, reorder_memory(state.stopping, source_rows))
        finish_codes.append(codes.view(-1, beams))
        memories.append(stopping)
    return torch.cat(finish_codes, 1), memories


def update_pruned_bound(
    candidates: Candidates,
    pruned: Bool[Tensor, "batch candidates"],
    scores: Scores,
    state: BeamState,
    scorer: PathScorer,
    expansion: Expansion,
) -> Float32[Tensor, " batch"]:
    """Upper bound on the score of all hypotheses pruned so far, those of this step included.

    `pruned` marks candidates that neither go on nor compete for the finished set; `state` is from before.
    """
    batch, beams = state.log_probs.shape
    bound = candidates.bounds.masked_fill(~pruned, -torch.inf).amax(-1)
    if candidates.log_probs.shape[1] < beams * scores.shape[-1]:
        # No continuation beyond the candidates has a greater sum than the last of them. So its bound holds
        # for them too, if candidates are chosen by their sums and the scorer's bound depends on sums alone.
        rest = torch.full_like(bound, torch.inf)
        if isinstance(expansion, BestExpansion):
            rest = rest if scorer.stateful else candidates.bounds[:, -1]
            rest = rest.masked_fill(candidates.log_probs.amin(-1) == -torch.inf, -torch.inf)
        bound = bound.maximum(rest)
    # Bounds assume that a token adds at most 0 to the sum.
    is_above_zero = (scores.amax(-1).view(batch, beams) > 0) & (state.log_probs > -torch.inf)
    bound = bound.masked_fill(is_above_zero.any(-1), torch.inf)
    return torch.where(state.active, state.pruned_bound.maximum(bound), state.pruned_bound)
