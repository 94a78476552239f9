"""Depth-first search (branch and bound)."""

from collections.abc import Generator
from dataclasses import KW_ONLY, dataclass
from typing import final

from typing_extensions import override

from decodekit.core.request import DecodeRequest
from decodekit.core.result import Decoded
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
class DepthFirst(CustomLoop[Certificate]):
    r"""Finds the best hypotheses and proves it, in little memory: branch and bound.

    Follows the most promising continuation until it ends, then backtracks to the last choice and takes the
    next one, unless the scorer's `bound` shows that neither it nor any continuation can beat the best found
    so far. `BestFirst` stores the whole frontier. This search stores the siblings along one path only, and
    expands more nodes.

    The result is that of `BestFirst`, whose documentation covers scorers without a bound and processors that
    raise log-probabilities above 0. `Decoded.report` is a `Certificate`.

    Args:
        scorer: Scores hypotheses.
        num_return: Hypotheses to return, best first. If fewer exist, `valid` is False for the rest.
        max_nodes: Maximum number of nodes expanded per prompt, at least 1; None for no limit. At the limit,
            the search returns the best hypotheses so far.

    Raises:
        TypeError: If `scorer` is not a `PathScorer`.
        ValueError: If a number is out of range.
        DecodingError: In a run, if no hypothesis of a prompt can end.

    Example:
        >>> out = dk.decode(dk.load(), "Once upon a time there was", DepthFirst(), max_new_tokens=3)
        >>> out.texts, out.report.proved
        ([[' a man who']], tensor([True]))

    Source:
        Stahlberg & Byrne, 2019, https://arxiv.org/abs/1908.10090, section 3.

    Hugging Face:
        None.
    """

    _: KW_ONLY
    scorer: PathScorer = LengthPenalty(1.0)
    num_return: int = 1
    max_nodes: int | None = None

    def __post_init__(self) -> None:
        check_search("DepthFirst", self.scorer, self.num_return, self.max_nodes)

    @override
    def run(
        self, model: Model, processor: LogitsProcessor, request: DecodeRequest
    ) -> Generator[None, None, Decoded[Certificate]]:
        plan = SearchPlan(priority=_deepest, num_return=self.num_return, max_nodes=self.max_nodes)
        return search(model, processor, request, self.scorer, plan, "DepthFirst")


def _deepest(children: Children) -> tuple[float, ...]:
    # The queue holds the siblings along one path, so no two entries have the same length.
    return (-children.length,)
