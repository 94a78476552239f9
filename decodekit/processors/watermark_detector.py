"""Detection of the green-list watermark."""

import math
from collections import Counter
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from decodekit.core.validation import is_count, is_number
from decodekit.errors import DecodekitError
from decodekit.processors._shared.texts import Texts, read_sequences
from decodekit.processors.watermark import Watermark


class WatermarkDetection(NamedTuple):
    """What was counted in each text, and what that says.

    Attributes:
        scored: Tokens whose list is known: all but the first few.
        green: How many of them are green.
        z_score: Standard deviations that `green` is above what chance gives.
        p_value: Probability of at least this z-score without a watermark, by the normal distribution.
        found: Whether the z-score is above the threshold.
    """

    scored: Int64[Tensor, " batch"]
    green: Int64[Tensor, " batch"]
    z_score: Float64[Tensor, " batch"]
    p_value: Float64[Tensor, " batch"]
    found: Bool[Tensor, " batch"]


@final
@dataclass(frozen=True)
class WatermarkDetector:
    r"""Tells text that was written with a `Watermark` from other text, without the model.

    With T tokens, g of them green, and the ratio $\gamma$ of green ones in the vocabulary,

    $$z = (g - \gamma T) / \sqrt{T \gamma (1 - \gamma)}.$$

    Args:
        watermark: As it was used to write; its bias does not matter.
        vocab: Width of the scores that it was applied to.
        ignore_repeated_ngrams: Counts a token once in the same context: text that repeats itself does
            not count as more evidence.
        threshold: The z-score above which a text counts as watermarked. Usual value: 3-4.

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
        z_threshold)`: the same counts, z-scores and p-values. Texts may differ in length here, and no
        first token is taken off: give what was generated, without the prompt and special tokens.
    """

    watermark: Watermark
    vocab: int
    _: KW_ONLY
    ignore_repeated_ngrams: bool = False
    threshold: float = 3.0

    def __post_init__(self) -> None:
        if not isinstance(self.watermark, Watermark):
            raise ValueError(f"WatermarkDetector: watermark must be a Watermark, got {self.watermark!r}.")  # noqa: TRY004 - errors of constructors are of one kind
        if not is_count(self.vocab, 1):
            raise ValueError(
                f"WatermarkDetector: vocab must be an integer of at least 1, got {self.vocab!r}."
            )
        if type(self.ignore_repeated_ngrams) is not bool:
            raise ValueError(
                "WatermarkDetector: ignore_repeated_ngrams must be True or False, got "
                f"{self.ignore_repeated_ngrams!r}."
            )
        if not (is_number(self.threshold) and math.isfinite(self.threshold)):
            raise ValueError(f"WatermarkDetector: threshold must be a finite number, got {self.threshold!r}.")

    def __call__(self, texts: Texts) -> WatermarkDetection:
        """Counts the green tokens of every text.

        Args:
            texts: The new tokens of one text or several, such as `itertools.chain(*out.hypotheses())`.

        Raises:
            DecodekitError: If a text is too short to hold one token with its context, or an id is
                outside the vocabulary.
        """
        counts = [self._count(text) for text in read_sequences("WatermarkDetector", texts)]
        scored, green = torch.tensor(counts).T.unbind()
        ratio, total = self.watermark.greenlist_ratio, scored.double()
        z_score = (green - ratio * total) / (total * ratio * (1 - ratio)).sqrt()
        p_value = 0.5 * torch.special.erfc(z_score / math.sqrt(2))
        return WatermarkDetection(scored, green, z_score, p_value, z_score > self.threshold)

    def _count(self, text: list[int]) -> tuple[int, int]:
        """The tokens of a text that count, and the green ones among them."""
        size = self.watermark.reach + 1
        if len(text) < size:
            raise DecodekitError(
                f"WatermarkDetector: a text must have at least {size} tokens, got {len(text)}."
            )
        if (largest := max(text)) >= self.vocab:
            raise DecodekitError(
                f"WatermarkDetector: token ids must be below the vocabulary size {self.vocab}, got {largest}."
            )
        ngrams = Counter(zip(*(text[start:] for start in range(size)), strict=False))
        windows = torch.tensor(list(ngrams))
        green = self.watermark.is_green(windows[:, :-1], windows[:, -1:], self.vocab)[:, 0].tolist()
        times = [1] * len(ngrams) if self.ignore_repeated_ngrams else list(ngrams.values())
        return sum(times), sum(count for count, hit in zip(times, green, strict=True) if hit)
