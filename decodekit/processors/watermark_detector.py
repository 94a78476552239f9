"""Detection of the green-list watermark."""

from collections import Counter
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from decodekit.core.validation import FINITE, FLAG, CheckedOptions, Requirement, at_least, check_fields
from decodekit.processors._shared.detection import TokenSequences, read_sequences, upper_tail
from decodekit.processors.base import check_largest
from decodekit.processors.watermark import Watermark


class WatermarkDetection(NamedTuple):
    """Counts of green tokens, with their z-score, per sequence.

    Attributes:
        scored: Tokens with a whole context: all but the first few.
        green: Number of green ones among them.
        z_score: Standard deviations of `green` above its mean without a watermark.
        p_value: Probability of at least this z-score without a watermark, by the normal distribution.
        found: True if the z-score is above the threshold.
    """

    scored: Int64[Tensor, " batch"]
    green: Int64[Tensor, " batch"]
    z_score: Float64[Tensor, " batch"]
    p_value: Float64[Tensor, " batch"]
    found: Bool[Tensor, " batch"]


@final
@dataclass(frozen=True)
class WatermarkDetector(CheckedOptions):
    r"""Detects sequences that were generated with a `Watermark`, without the model.

    With T tokens, g of them green, and the ratio $\gamma$ of green ones in the vocabulary,

    $$z = (g - \gamma T) / \sqrt{T \gamma (1 - \gamma)}.$$

    Args:
        watermark: The processor of the run that generated them; its bias does not matter.
        vocab: Width of the scores that it changed, at least 1.
        ignore_repeated_ngrams: True to count a token once per context, so that repetition is no evidence.
        threshold: The z-score above which a sequence is watermarked. Usual value: 3-4.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> detector = dk.WatermarkDetector(dk.Watermark(lists="hash"), vocab=50)
        >>> detector([[1, 2, 3, 4], [5, 6, 7]]).scored
        tensor([3, 2])

    Source:
        Kirchenbauer et al., 2023, https://arxiv.org/abs/2301.10226, eq. 3.

    Hugging Face:
        `WatermarkDetector(model_config, "cpu", watermarking_config, ignore_repeated_ngrams)(input_ids,
        z_threshold)`: the same counts, z-scores and p-values. Sequences may differ in length here, and the
        first token counts: pass only generated tokens, without the prompt and special tokens.
    """

    watermark: Watermark
    vocab: int
    _: KW_ONLY
    ignore_repeated_ngrams: bool = False
    threshold: float = 3.0

    def __post_init__(self) -> None:
        check_fields(self, watermark=Requirement(lambda one: isinstance(one, Watermark), "a Watermark"))
        check_fields(self, vocab=at_least(1), ignore_repeated_ngrams=FLAG, threshold=FINITE)

    def __call__(self, sequences: TokenSequences) -> WatermarkDetection:
        """Count the green tokens of every sequence.

        Args:
            sequences: Generated tokens, one sequence or several, such as
                `itertools.chain(*out.hypotheses())`.

        Raises:
            ValueError: If an id is not an integer of at least 0, or there is no sequence.
            DecodekitError: If a sequence is too short for one token with its context, or an id is outside the
                vocabulary.
        """
        read = read_sequences("WatermarkDetector", sequences, min_length=self.watermark.reach + 1)
        counts = [self._count(tokens) for tokens in read]
        scored, green = torch.tensor(counts).T.unbind()
        ratio, total = self.watermark.greenlist_ratio, scored.double()
        z_score = (green - ratio * total) / (total * ratio * (1 - ratio)).sqrt()
        return WatermarkDetection(scored, green, z_score, upper_tail(z_score), z_score > self.threshold)

    def _count(self, tokens: list[int]) -> tuple[int, int]:
        """Count the scored tokens of a sequence, and the green ones among them."""
        check_largest("WatermarkDetector", max(tokens), self.vocab)
        ngrams = Counter(zip(*(tokens[start:] for start in range(self.watermark.reach + 1)), strict=False))
        windows = torch.tensor(list(ngrams))
        green = self.watermark.is_green(windows[:, :-1], windows[:, -1:], self.vocab)[:, 0].tolist()
        times = [1] * len(ngrams) if self.ignore_repeated_ngrams else list(ngrams.values())
        return sum(times), sum(count for count, hit in zip(times, green, strict=True) if hit)
