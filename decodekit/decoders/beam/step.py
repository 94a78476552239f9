"""How a beam search goes on from the continuations that it looked at."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.limits import LENGTH
from decodekit.core.pytrees import pick_memory, reorder_memory
from decodekit.decoders.base import Selection
from decodekit.decoders.beam.candidates import Candidates
from decodekit.decoders.beam.finished import Ending
from decodekit.decoders.beam.state import BeamState
from decodekit.decoders.beam.stop_rules import SearchStatus, StopRule
from decodekit.scorers.base import PathScorer


class Ranks(NamedTuple):
    """Who may go on, and who may finish.

    Attributes:
        first: Candidates that may finish, if they end.
        order: Those that do not end go on in the order of this, greatest first; minus infinity: not at all.
        places: Beams that there are in this step.
        shows_ended: Whether the stop rule is shown candidates that have just ended, beside those that go
            on, and hypotheses that end at the limit of the run say their last token.
    """

    first: Bool[Tensor, "batch candidates"]
    order: Float32[Tensor, "batch candidates"]
    places: Bool[Tensor, " beams"]
    shows_ended: bool = False


class Advance(NamedTuple):
    """What has become of the candidates.

    Attributes:
        state: Of the search, after the step; what it has let go of and whether it is stuck are not in it yet.
        tokens: What every row says next.
        source_rows: The row that each goes on from.
        chosen: The candidate that every beam has become.
        says: Beams that said a token of their own and did not end with it, but at the limit of the run.
        goes: Those that go on.
        dropped: Candidates that neither went on nor could finish.
        left: The best score of what had to leave the finished set or could not enter it.
        standing: How the search stands.
    """

    state: BeamState
    tokens: Int64[Tensor, " rows"]
    source_rows: Int64[Tensor, " rows"]
    chosen: Int64[Tensor, "batch beams"]
    says: Bool[Tensor, "batch beams"]
    goes: Bool[Tensor, "batch beams"]
    dropped: Bool[Tensor, "batch candidates"]
    left: Float32[Tensor, " batch"]
    status: SearchStatus

    @property
    def selection(self) -> Selection:
        """What the step decided."""
        return Selection(self.tokens, self.source_rows)


def advance(
    candidates: Candidates, ranks: Ranks, state: BeamState, scorer: PathScorer, stop_rule: StopRule
) -> Advance:
    """Retire what ended, go on with the best of the rest, see whether it is worth it.

    Args:
        candidates: The continuations that the step looked at.
        ranks: Who may go on, and who may finish.
        state: Of the search, before the step.
        scorer: What hypotheses are worth.
        stop_rule: When to stop looking.
    """
    step = state.history.position - state.limits.prompt_length
    exists, ends = candidates.log_probs > -torch.inf, candidates.finish_code > 0
    enters = ends & exists & ranks.first & state.open[:, None]
    ending = Ending(
        enters, candidates.source_beams, candidates.entry, candidates.scores, candidates.finish_code
    )
    finished, left = state.finished.after(ending, state.live, step)
    # Go on: the best that did not end. At the limit none does; who shows what ended says a last token there.
    stays = ends & (candidates.finish_code != LENGTH) if ranks.shows_ended else ends
    order = ranks.order.masked_fill(stays, -torch.inf)
    order, chosen = order.topk(len(ranks.places))
    says = ranks.places & (order > -torch.inf)
    goes = says & ~ends.gather(1, chosen)
    log_probs = candidates.log_probs.gather(1, chosen).masked_fill(~goes, -torch.inf)
    guides = candidates.priority.gather(1, chosen).masked_fill(~goes, -torch.inf)
    entry = candidates.entry.take(chosen)
    source_rows, tokens = entry.parent.flatten(), entry.token.flatten()
    rows = torch.arange(len(log_probs), device=step.device)[:, None] * ends.shape[1] + chosen
    after = state._replace(
        history=state.history.take(source_rows).append(tokens),
        model_scores=None,
        attention=None,
        log_probs=log_probs,
        guides=guides if scorer.stepwise else None,
        live=state.live.take(candidates.source_beams.gather(1, chosen)).write(step, entry),
        memory=reorder_memory(candidates.memory, rows.flatten()),
        stopping=pick_memory(candidates.stopping, chosen),
        finished=finished,
    )
    status = _standing(after, candidates if ranks.shows_ended else None, step, scorer)
    return Advance(
        state=after._replace(open=state.open & (log_probs > -torch.inf).any(-1) & stop_rule.goes_on(status)),
        tokens=tokens,
        source_rows=source_rows,
        chosen=chosen,
        says=says,
        goes=goes,
        dropped=exists & ~enters & ~torch.zeros_like(ends).scatter(1, chosen, goes),
        left=left,
        status=status,
    )


def _standing(
    after: BeamState, candidates: Candidates | None, step: Int64[Tensor, ""], scorer: PathScorer
) -> SearchStatus:
    """How the search stands after a step, by what goes on or by all candidates."""
    return SearchStatus(
        live=after.log_probs if candidates is None else candidates.log_probs,
        lengths=(step + 1).expand(len(after.log_probs)),
        worst_finished=after.finished.scores[:, -1],
        full=after.finished.used.all(-1),
        max_length=after.limits.max_new_tokens,
        scorer=scorer,
        memory=after.memory if candidates is None else candidates.memory,
    )
