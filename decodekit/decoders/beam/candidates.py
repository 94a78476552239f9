"""The continuations that a step of beam search looks at."""

from typing import NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.limits import Stopping
from decodekit.core.pytrees import Memory, reorder_memory
from decodekit.decoders.beam.expansion import Expansion
from decodekit.decoders.beam.records import Entry
from decodekit.decoders.beam.state import BeamState
from decodekit.errors import DecodekitError
from decodekit.scorers.base import ExtendedHypotheses, PathScorer


class Candidates(NamedTuple):
    """The one-token continuations of a prompt's live hypotheses that a step looks at, best first.

    Attributes:
        log_probs: Their sums of processed scores.
        priority: What those that do not end are ranked by.
        source_beams: The beam of its prompt that each continues.
        entry: What is written down about the new token.
        scores: What each is worth, if it ends here.
        bounds: What neither it nor a continuation of it is worth more than.
        memory: What the scorer remembers about them, prompt after prompt.
        why: What finishes each; 0: nothing does.
        stopping: What the stopping criteria remember about `beams` of them, and the next, and so on.
    """

    log_probs: Float32[Tensor, "batch candidates"]
    priority: Float32[Tensor, "batch candidates"]
    source_beams: Int64[Tensor, "batch candidates"]
    entry: Entry
    scores: Float32[Tensor, "batch candidates"]
    bounds: Float32[Tensor, "batch candidates"]
    memory: Memory
    finish_code: Int64[Tensor, "batch candidates"]
    stopping: list[Stopping]


def extend(
    scores: Float32[Tensor, "rows vocab"],
    state: BeamState,
    step: Int64[Tensor, ""],
    scorer: PathScorer,
    expansion: Expansion,
) -> Candidates:
    """The continuations to look at: enough that the beams are full, whatever ends.

    Args:
        scores: What each token adds on each row.
        state: Of the search, before the step.
        step: How many tokens the hypotheses have.
        scorer: What they are worth.
        expansion: Which to look at.
    """
    batch, beams = state.log_probs.shape
    vocab = scores.shape[-1]
    added = scores.view(batch, beams, vocab)  # [rows vocab] -> [batch beams vocab]
    ranked = state.log_probs if state.guides is None else state.guides
    sums = added + ranked[..., None]
    flat, priority = _pick(expansion, sums, max(2, 1 + len(state.limits.end_ids)))
    source_beams, tokens = flat // vocab, flat % vocab
    sums, new = sums.flatten(1).gather(1, flat), added.flatten(1).gather(1, flat)
    log_probs = sums if state.guides is None else state.log_probs.gather(1, source_beams) + new
    log_probs = log_probs.masked_fill(priority == -torch.inf, -torch.inf)  # what the expansion leaves out
    memory = _remember(Entry(tokens, new, rows_of(source_beams, beams)), state, scorer)
    own = torch.zeros_like(log_probs)
    if state.model_scores is not None:
        own = state.model_scores.reshape(batch, -1).gather(1, flat)
    entry = Entry(tokens, own, rows_of(source_beams, beams))
    if scorer.stepwise:
        lengths = (step + 1).expand(flat.numel())
        guides = scorer.partial_score(log_probs.flatten(), lengths, memory).view_as(flat)
        # What an expansion takes off stays off; what does not exist stays out.
        guides = torch.where(log_probs > -torch.inf, guides + (priority - sums), -torch.inf)
        priority, order = guides.sort(descending=True, stable=True)
        log_probs, source_beams = log_probs.gather(1, order), source_beams.gather(1, order)
        entry = entry.take(order)
        memory = reorder_memory(memory, rows_of(order, order.shape[1]).flatten())
    return _judge(log_probs, priority, source_beams, entry, memory, state=state, step=step, scorer=scorer)


def _pick(
    expansion: Expansion, sums: Float32[Tensor, "batch beams vocab"], times: int
) -> tuple[Int64[Tensor, "batch candidates"], Float32[Tensor, "batch candidates"]]:
    """What the expansion picks, if there are enough for every beam."""
    _, beams, vocab = sums.shape
    flat, priority = expansion.pick(sums, min(times, vocab) * beams)
    if flat.shape[1] == 0 or flat.shape[1] % beams:
        raise DecodekitError(
            f"BeamSearch: an expansion must pick as many continuations as beams, or a multiple of that, and "
            f"{expansion!r} picked {flat.shape[1]} for {beams} beams."
        )
    return flat, priority


def _remember(new: Entry, state: BeamState, scorer: PathScorer) -> Memory:
    """What the scorer remembers of the continuations, prompt after prompt."""
    if not scorer.stateful:
        return state.memory
    source_rows = new.parent.flatten()
    seen = None if state.attention is None else state.attention.index_select(0, source_rows)
    growth = ExtendedHypotheses(state.history, source_rows, new.token.flatten(), new.log_prob.flatten(), seen)
    return scorer.update(growth, reorder_memory(state.memory, source_rows))


def _judge(  # noqa: PLR0913 - what is known of the candidates, and what they are judged by
    log_probs: Float32[Tensor, "batch candidates"],
    priority: Float32[Tensor, "batch candidates"],
    source_beams: Int64[Tensor, "batch candidates"],
    entry: Entry,
    memory: Memory,
    *,
    state: BeamState,
    step: Int64[Tensor, ""],
    scorer: PathScorer,
) -> Candidates:
    """The candidates with what ends them and what they are worth."""
    finish_code, stopping = _finish(entry, state)
    lengths, most = (step + 1).expand(log_probs.numel()), state.limits.max_new_tokens
    return Candidates(
        log_probs=log_probs,
        priority=priority,
        source_beams=source_beams,
        entry=entry,
        scores=scorer.score(log_probs.flatten(), lengths, memory).view_as(log_probs),
        bounds=scorer.upper_bound(log_probs.flatten(), lengths, most, memory).view_as(log_probs),
        memory=memory,
        finish_code=finish_code,
        stopping=stopping,
    )


def _finish(entry: Entry, state: BeamState) -> tuple[Int64[Tensor, "batch candidates"], list[Stopping]]:
    """What finishes each candidate, asked as hypotheses are: as many at a time as there are beams."""
    limits, beams = state.limits, state.log_probs.shape[1]
    if not limits.criteria:
        return limits.finish_token(entry.token, state.history.position + 1), [state.stopping]
    finish_code, stopping = [], []
    for first in range(0, entry.token.shape[1], beams):
        tokens, log_probs, source_rows = (field[:, first : first + beams].flatten() for field in entry)
        history = state.history.take(source_rows).append(tokens)
        fired, after = limits.finish(history, log_probs, reorder_memory(state.stopping, source_rows))
        finish_code.append(fired.view(-1, beams))
        stopping.append(after)
    return torch.cat(finish_code, 1), stopping


def rows_of(hyps: Int64[Tensor, "batch chosen"], hyps_per_prompt: int) -> Int64[Tensor, "batch chosen"]:
    """Where hypotheses of each prompt stand among those of all prompts."""
    first = torch.arange(len(hyps), device=hyps.device)[:, None] * hyps_per_prompt
    return first + hyps
