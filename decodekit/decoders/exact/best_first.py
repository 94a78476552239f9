"""Exact search, the most promising texts first."""

from collections.abc import Generator
from dataclasses import KW_ONLY, dataclass
from typing import final

from decodekit.core.request import DecodeRequest
from decodekit.core.result import Decoded
from decodekit.core.validation import is_count
from decodekit.decoders.beam.certificate import Certificate
from decodekit.decoders.custom_loop import CustomLoop
from decodekit.decoders.exact.branch import Branch
from decodekit.decoders.exact.search import check_search, search
from decodekit.decoders.exact.tree import Plan
from decodekit.models.protocols import Model
from decodekit.processors.base import LogitsProcessor
from decodekit.scorers.base import PathScorer
from decodekit.scorers.length_penalty import LengthPenalty


@final
@dataclass(frozen=True)
class BestFirst(CustomLoop[Certificate]):
    r"""Finds the best texts there are, and proves it: A* search, which follows the text that promises most.

    A text is worth $s(y)$, and it and its continuations no more than $\bar s(y)$, the scorer's `bound`: the
    admissible heuristic. Of all texts that wait, the one of the greatest $\bar s$ is looked at next; those of
    its continuations that end compete by their score, the others wait. The search is over when
    $\bar s(y) \le s(y^*)$ for all that wait.

    The bound takes for granted that no processor leaves a log-probability above 0: put `Renormalize` behind
    one that adds to them. Where one above 0 is seen, and under a scorer without a bound, nothing is ruled
    out, and all texts are looked at: set `max_nodes`. When that is used up, the best found so far come back,
    or fewer than were asked for, or none. `Decoded.report` is a `Certificate`: the texts looked at, the
    bound, whether the result is proved, and the gap.

    All prompts are searched at once. Every text is read from its prompt on, by the model, and by processors
    that cannot keep what they remember of it, such as those with a second model.

    Args:
        scorer: What a text is worth. What unfinished ones are ranked by where it `guides` does not matter.
        beams: With a number, no more texts of each length go on, and none of a lower rank ends: those of the
            greatest sums. That is best-first beam search: the texts of `BeamSearch(beams, scorer=scorer,
            stop_rule=Proved())`, from fewer looks, and a proof only where there happens to be one. None: any
            number, exact.
        num_return: Texts to return, best first; at most `beams`. Where fewer exist, `valid` says so.
        max_nodes: Texts of each prompt whose next tokens are looked at, at most; None: any number.
        at_once: Texts of each prompt that one call of the model looks at, at least 1. More make larger
            batches, and look at some texts for nothing. 1 with `beams`.

    Raises:
        TypeError: If `scorer` is not one.
        ValueError: If a number is out of range, or `beams` goes with `at_once` above 1 or with a scorer that
            ranks unfinished texts by something else than their sums (`guides`).
        DecodingError: In a run, if no text of a prompt can end.

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
        if not is_count(self.at_once, 1):
            raise ValueError(f"BestFirst: at_once must be an integer of at least 1, got {self.at_once!r}.")
        if self.beams is None:
            return
        if not is_count(self.beams, 1) or self.beams < self.num_return:
            raise ValueError(
                "BestFirst: beams must be an integer of at least 1 and of num_return, or None, got "
                f"{self.beams!r} for {self.num_return} to return."
            )
        if self.at_once > 1 or self.scorer.guides:
            raise ValueError(
                "BestFirst: with beams, texts are looked at in the order of their sums, so at_once must be 1 "
                f"and the scorer must not guide the search, got {self.at_once} and {self.scorer!r:.80}. "
                "Use BeamSearch, or leave beams out."
            )

    def run(
        self, model: Model, processor: LogitsProcessor, request: DecodeRequest
    ) -> Generator[None, None, Decoded[Certificate]]:
        """Looks at texts until nothing that waits can be better than what was found."""
        plan = Plan(
            order=_by_bound if self.beams is None else _by_sum,
            num_return=self.num_return,
            max_nodes=self.max_nodes,
            beams=self.beams,
            at_once=self.at_once,
        )
        return search(model, processor, request, "BestFirst", self.scorer, plan)


def _by_bound(branch: Branch) -> tuple[float, ...]:
    # Of tied texts the longest: it may soon end, and then more can be let go.
    return (-branch.bound, -branch.length, -branch.total)


def _by_sum(branch: Branch) -> tuple[float, ...]:
    return (-branch.total,)
