"""Best-first search (A*)."""

from collections.abc import Generator
from dataclasses import KW_ONLY, dataclass
from typing import final

from typing_extensions import override

from decodekit.core.request import DecodeRequest
from decodekit.core.result import Decoded
from decodekit.core.validation import at_least, check_fields, is_count, shown
from decodekit.decoders.beam.certificate import Certificate
from decodekit.decoders.custom_loop import CustomLoop
from decodekit.decoders.exact.node import Children
from decodekit.decoders.exact.search import check_search, search
from decodekit.decoders.exact.tree import SearchPlan
from decodekit.models.protocols import Model
from decodekit.processors.base import LogitsProcessor
from decodekit.scorers.base import PathScorer
from decodekit.scorers.length_penalty import LengthPenalty


@final
@dataclass(frozen=True)
class BestFirst(CustomLoop[Certificate]):
    r"""Finds the best hypotheses and proves it: A* search, which expands the most promising node first.

    A hypothesis has a score $s(y)$ and, with the scorer's `bound` as admissible heuristic, an upper bound
    $\bar s(y)$ on its score and that of all its continuations. Each step expands the open node of the largest
    $\bar s$. Finished children compete by score; open ones join the queue. The search ends when
    $\bar s(y) \le s(y^*)$ for every node in the queue.

    The bound assumes that all log-probabilities are at most 0 after the processors: put `Renormalize` after a
    processor that raises them. If one is above 0, or the scorer has no bound, nothing is pruned and the
    search is exhaustive: set `max_nodes`. After `max_nodes` expansions the search returns the best hypotheses
    so far, possibly fewer than `num_return`, or none. `Decoded.report` is a `Certificate`: the number of
    expanded nodes, the bound, whether the result is proved, and the gap.

    All prompts are searched together. The model reads the whole sequence of every node, prompt included,
    and so do the second models of processors.

    Args:
        scorer: Scores hypotheses. Its `partial_score` is ignored.
        beams: Maximum number of expanded nodes of each length, the best by their sums of log-probabilities.
            Hypotheses that rank lower never finish. This is best-first beam search: the result is that of
            `BeamSearch(beams, scorer=scorer, stop_rule=Proved())`, with fewer expansions, not always proved.
            None: no limit, exact.
        num_return: Hypotheses to return, best first; at most `beams`. `valid` is False for missing ones.
        max_nodes: Maximum number of nodes expanded per prompt, at least 1; None for no limit.
        at_once: Nodes of each prompt that one call of the model expands, at least 1. Larger values make
            larger batches, and expand some nodes unnecessarily. Must be 1 with `beams`.

    Raises:
        TypeError: If `scorer` is not a `PathScorer`.
        ValueError: If a number is out of range, or `beams` is combined with `at_once` above 1 or with
            a scorer that is `stepwise`.
        DecodingError: In a run, if no hypothesis of a prompt can end.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon a time there was", BestFirst(), max_new_tokens=3)
        >>> out.texts, out.report.proved
        ([[' a man who']], tensor([True]))

    Source:
        Meister, Vieira & Cotterell, 2020, https://arxiv.org/abs/2007.03909; Hart, Nilsson & Raphael, 1968, *A
        formal basis for the heuristic determination of minimum cost paths*.

    Hugging Face:
        None.
    """

    _: KW_ONLY
    scorer: PathScorer = LengthPenalty(1.0)
    beams: int | None = None
    num_return: int = 1
    max_nodes: int | None = None
    at_once: int = 1

    def __post_init__(self) -> None:
        check_search("BestFirst", self.scorer, self.num_return, self.max_nodes)
        check_fields(self, at_once=at_least(1))
        if self.beams is None:
            return
        if not is_count(self.beams, 1) or self.beams < self.num_return:
            raise ValueError(
                "BestFirst: beams must be an integer of at least 1 and of num_return, or None, got "
                f"{self.beams!r} for {self.num_return} to return."
            )
        if self.at_once > 1 or self.scorer.stepwise:
            raise ValueError(
                "BestFirst: with beams, nodes are expanded in the order of their sums, so at_once must be 1 "
                f"and the scorer must not guide the search, got {self.at_once} and {shown(self.scorer)}. "
                "Use BeamSearch, or leave beams out."
            )

    @override
    def run(
        self, model: Model, processor: LogitsProcessor, request: DecodeRequest
    ) -> Generator[None, None, Decoded[Certificate]]:
        plan = SearchPlan(
            priority=_by_bound if self.beams is None else _by_total,
            num_return=self.num_return,
            max_nodes=self.max_nodes,
            beams=self.beams,
            at_once=self.at_once,
        )
        return search(model, processor, request, self.scorer, plan, "BestFirst")


def _by_bound(children: Children) -> tuple[float, ...]:
    # Ties go to the longest hypothesis: it may end soon, which allows more pruning.
    return (-children.bound, -children.length, -children.total)


def _by_total(children: Children) -> tuple[float, ...]:
    return (-children.total,)
