"""Brevity penalty, as in BLEU."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import final

from typing_extensions import override

from decodekit.scorers._shared.expected_length import ExpectedLengthScorer
from decodekit.scorers.base import Lengths, PathScorer, Values
from decodekit.scorers.length_penalty import LengthPenalty


@final
@dataclass(frozen=True)
class BrevityPenalty(ExpectedLengthScorer):
    r"""Subtracts BLEU's brevity penalty from hypotheses below the expected length.

    $s(y) + \lambda \min\left(1 - \frac{L}{|y|}, 0\right)$; with $\lambda = 1$ the log of the penalty.
    $L$ is the expected length: `length`, or `ratio` times the number of tokens of the encoder's source, or
    of the prompt if there is no encoder.

    Args:
        weight: $\lambda$, at least 0.
        ratio: Expected new tokens per token of the source or prompt, above 0.
        length: Expected new tokens, above 0: one number, or one per prompt. Excludes `ratio`.
        base: The scorer to adjust.

    Raises:
        ValueError: If a number is out of range, or both or neither of `ratio` and `length` are given.
        DecodekitError: In a run, if the number of lengths differs from the batch size.

    Example:
        >>> search = dk.BeamSearch(5, scorer=BrevityPenalty(ratio=1.1))

    Source:
        Yang, Huang & Ma, 2018, https://arxiv.org/abs/1808.09582, section 4.

    Hugging Face:
        None.
    """

    weight: float = 1.0
    _: KW_ONLY
    ratio: float | None = None
    length: float | Sequence[float] | None = None
    base: PathScorer = LengthPenalty(1.0)

    def __post_init__(self) -> None:
        self.check("weight")

    @override
    def adjustment(self, lengths: Lengths, memory: Values) -> Values:
        return self.weight * (1 - memory / lengths).clamp(max=0)
