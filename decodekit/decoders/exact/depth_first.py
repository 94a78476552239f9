"""Exact search, one text to its end before the next."""

from collections.abc import Generator
from dataclasses import KW_ONLY, dataclass
from typing import final

from decodekit.core.request import DecodeRequest
from decodekit.core.result import Decoded
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
class DepthFirst(CustomLoop[Certificate]):
    r"""Finds the best texts there are, and proves it, in little memory: branch and bound.

    Follows the most promising continuation until it ends, then goes back to the last choice and takes the
    next one, unless the scorer's `bound` says that neither it nor any continuation of it can be better than
    what was found. Where `BestFirst` keeps all texts that wait, this keeps those along one text, and looks at
    more of them.

    The texts are those of `BestFirst`, which says more of scorers without a bound, of processors that raise
    log-probabilities above 0, and of how texts are read. `Decoded.report` is a `Certificate`.

    Args:
        scorer: What a text is worth.
        num_return: Texts to return, best first. Where fewer exist, `valid` says so.
        max_nodes: Texts of each prompt whose next tokens are looked at, at most; None: any number. When it is
            used up, the best found so far come back.

    Raises:
        TypeError: If `scorer` is not one.
        ValueError: If a number is out of range.
        DecodingError: In a run, if no text of a prompt can end.

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

    def run(
        self, model: Model, processor: LogitsProcessor, request: DecodeRequest
    ) -> Generator[None, None, Decoded[Certificate]]:
        """Follows texts to their ends until nothing is left that can be better than what was found."""
        plan = Plan(order=_deepest, num_return=self.num_return, max_nodes=self.max_nodes)
        return search(model, processor, request, "DepthFirst", self.scorer, plan)


def _deepest(branch: Branch) -> tuple[float, ...]:
    # Only the branches along one text wait, so that no two of them are of one length.
    return (-branch.length,)
