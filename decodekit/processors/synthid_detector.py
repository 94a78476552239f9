"""Detection of SynthID's tournament watermark."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from decodekit.core.validation import is_number
from decodekit.errors import DecodekitError
from decodekit.processors._shared.texts import Texts, read_sequences
from decodekit.processors.synthid import SynthID, extend_hash, hash_tokens


class SynthIDDetection(NamedTuple):
    """What the numbers of each text's tokens say.

    Attributes:
        scored: Tokens that count: those after a whole context that is new.
        mean: Mean of their numbers over all rounds; 0.5 without a watermark.
        weighted_mean: The mean by the rounds' weights.
        z_score: Standard deviations that `weighted_mean` is above what chance gives.
        p_value: Probability of at least this z-score without a watermark, by the normal distribution.
        found: Whether the z-score is above the threshold.
    """

    scored: Int64[Tensor, " batch"]
    mean: Float64[Tensor, " batch"]
    weighted_mean: Float64[Tensor, " batch"]
    z_score: Float64[Tensor, " batch"]
    p_value: Float64[Tensor, " batch"]
    found: Bool[Tensor, " batch"]


@final
@dataclass(frozen=True)
class SynthIDDetector:
    r"""Tells text that was written with `SynthID` from other text, without the model and without training.

    With the numbers $g_l(t)$ of T tokens in m rounds, and weights $w_l$ that sum to m,

    $$\bar g = \frac{1}{Tm} \sum_{t,l} w_l\, g_l(t), \qquad
    z = (2 \bar g - 1)\, m \sqrt{T} \Big/ \sqrt{\textstyle\sum_l w_l^2},$$

    where without a watermark every number is a fair coin's.

    Args:
        watermark: As it was used to write.
        weights: What each round counts, at least 0, in the order of the keys; None: falling linearly
            from 10 to 1, because later rounds carry less of the watermark.
        threshold: The z-score above which a text counts as watermarked. Usual value: 3-4.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> detector = dk.SynthIDDetector(dk.SynthID([654, 400, 836], ngram_len=3))
        >>> detector([[1, 2, 3, 4], [5, 6, 7]]).scored
        tensor([2, 1])

    Source:
        Dathathri et al., 2024, https://doi.org/10.1038/s41586-024-08025-4: the mean and the weighted mean
        score. The z-score is their normal approximation.

    Hugging Face:
        None: `SynthIDTextWatermarkDetector` needs a trained classifier. The numbers are those of
        `compute_g_values`, at the places of `compute_context_repetition_mask`.
    """

    watermark: SynthID
    _: KW_ONLY
    weights: Sequence[float] | None = None
    threshold: float = 3.0

    def __post_init__(self) -> None:
        if not isinstance(self.watermark, SynthID):
            raise ValueError(f"SynthIDDetector: watermark must be a SynthID, got {self.watermark!r}.")  # noqa: TRY004 - errors of constructors are of one kind
        if not (is_number(self.threshold) and math.isfinite(self.threshold)):
            raise ValueError(f"SynthIDDetector: threshold must be a finite number, got {self.threshold!r}.")
        if self.weights is None:
            return
        weights, rounds = tuple(self.weights), len(tuple(self.watermark.keys))
        fine = all(is_number(weight) and 0 <= weight < float("inf") for weight in weights)
        if not (fine and len(weights) == rounds and sum(weights) > 0):
            raise ValueError(
                f"SynthIDDetector: weights must be {rounds} finite numbers of at least 0, not all of them 0, "
                f"got {self.weights!r}."
            )
        object.__setattr__(self, "weights", weights)  # a frozen field

    def __call__(self, texts: Texts) -> SynthIDDetection:
        """Scores every text.

        Args:
            texts: The new tokens of one text or several, such as `itertools.chain(*out.hypotheses())`.

        Raises:
            DecodekitError: If a text is shorter than one n-gram.
        """
        read = read_sequences("SynthIDDetector", texts)
        values = [self.g_values(text) for text in read]
        scored = torch.tensor([len(numbers) for numbers in values])
        rounds = values[0].shape[1]
        weights = torch.tensor(self.weights or torch.linspace(10, 1, rounds).tolist(), dtype=torch.float64)
        weights = weights * (rounds / weights.sum())
        mean = torch.stack([numbers.mean() for numbers in values])
        weighted_mean = torch.stack([(numbers * weights).mean() for numbers in values])
        z_score = (2 * weighted_mean - 1) * rounds * scored.double().sqrt() / weights.square().sum().sqrt()
        p_value = 0.5 * torch.special.erfc(z_score / math.sqrt(2))
        return SynthIDDetection(scored, mean, weighted_mean, z_score, p_value, z_score > self.threshold)

    def g_values(self, text: Sequence[int]) -> Float64[Tensor, "scored rounds"]:
        """The numbers of the tokens that count, in every round."""
        size = self.watermark.ngram_len
        if len(text) < size:
            raise DecodekitError(
                f"SynthIDDetector: a text must have at least {size} tokens, got {len(text)}."
            )
        windows = torch.tensor(text).unfold(0, size, 1)
        contexts = hash_tokens(windows[:, :-1])
        # A context counts unless it is among those just before it.
        ages = torch.arange(len(contexts))[:, None] - torch.arange(len(contexts))
        remembered = (ages > 0) & (ages <= self.watermark.context_history_size)
        new = ~((contexts[:, None] == contexts) & remembered).any(1)
        ngrams = extend_hash(contexts, windows[:, -1])[new]
        numbers = [self.watermark.g_values(ngrams, key) for key in self.watermark.keys]
        return torch.stack(numbers, 1).double()
