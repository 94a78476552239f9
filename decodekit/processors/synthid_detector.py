"""Detection of SynthID's tournament watermark."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from decodekit.core.validation import FINITE, CheckedOptions, Requirement, check_fields, is_number, set_fields
from decodekit.processors._shared.detection import TokenSequences, read_sequences, upper_tail
from decodekit.processors.synthid import SynthID, extend_hash, hash_tokens


class SynthIDDetection(NamedTuple):
    """Means of the tokens' g-values, with their z-score, per sequence.

    Attributes:
        scored: Tokens after a whole and new context.
        mean: Mean of their g-values over all rounds; 0.5 without a watermark.
        weighted_mean: The mean with the weights of the rounds.
        z_score: Standard deviations of `weighted_mean` above 0.5.
        p_value: Probability of at least this z-score without a watermark, by the normal distribution.
        found: True if the z-score is above the threshold.
    """

    scored: Int64[Tensor, " batch"]
    mean: Float64[Tensor, " batch"]
    weighted_mean: Float64[Tensor, " batch"]
    z_score: Float64[Tensor, " batch"]
    p_value: Float64[Tensor, " batch"]
    found: Bool[Tensor, " batch"]


@final
@dataclass(frozen=True)
class SynthIDDetector(CheckedOptions):
    r"""Detects sequences that were generated with `SynthID`, without the model and without training.

    With the g-values $g_l(t)$ of T tokens in m rounds, and weights $w_l$ that sum to m,

    $$\bar g = \frac{1}{Tm} \sum_{t,l} w_l\, g_l(t), \qquad
    z = (2 \bar g - 1)\, m \sqrt{T} \Big/ \sqrt{\textstyle\sum_l w_l^2},$$

    as without a watermark every g-value is that of a fair coin.

    Args:
        watermark: The processor of the run that generated them.
        weights: Weight of each round, at least 0, in the order of the keys; None: falling linearly from 10 to
            1, because later rounds carry less of the watermark.
        threshold: The z-score above which a sequence is watermarked. Usual value: 3-4.

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
        None: `SynthIDTextWatermarkDetector` needs a trained classifier. The g-values are those of
        `compute_g_values`, at the places of `compute_context_repetition_mask`.
    """

    watermark: SynthID
    _: KW_ONLY
    weights: Sequence[float] | None = None
    threshold: float = 3.0

    def __post_init__(self) -> None:
        watermark = Requirement(lambda given: isinstance(given, SynthID), "a SynthID")
        check_fields(self, watermark=watermark, threshold=FINITE)
        if self.weights is None:
            return
        weights, rounds = tuple(self.weights), len(tuple(self.watermark.keys))
        are_weights = all(is_number(weight) and 0 <= weight < float("inf") for weight in weights)
        if not (are_weights and len(weights) == rounds and sum(weights) > 0):
            raise ValueError(
                f"SynthIDDetector: weights must be {rounds} finite numbers of at least 0, not all of them 0, "
                f"got {self.weights!r}."
            )
        set_fields(self, weights=weights)

    def __call__(self, sequences: TokenSequences) -> SynthIDDetection:
        """Score every sequence.

        Args:
            sequences: Generated tokens, one sequence or several, such as
                `itertools.chain(*out.hypotheses())`.

        Raises:
            ValueError: If an id is not an integer of at least 0, or there is no sequence.
            DecodekitError: If a sequence is shorter than one n-gram.
        """
        values = [self.g_values(tokens) for tokens in read_sequences("SynthIDDetector", sequences)]
        scored = torch.tensor([len(g_values) for g_values in values])
        rounds = values[0].shape[1]
        weights = torch.tensor(self.weights or torch.linspace(10, 1, rounds).tolist(), dtype=torch.float64)
        weights = weights * (rounds / weights.sum())
        mean = torch.stack([g_values.mean() for g_values in values])
        weighted_mean = torch.stack([(g_values * weights).mean() for g_values in values])
        z_score = (2 * weighted_mean - 1) * rounds * scored.double().sqrt() / weights.square().sum().sqrt()
        return SynthIDDetection(
            scored, mean, weighted_mean, z_score, upper_tail(z_score), z_score > self.threshold
        )

    def g_values(self, tokens: Sequence[int]) -> Float64[Tensor, "scored rounds"]:
        """Return the g-values of the scored tokens of one sequence, in every round."""
        (tokens,) = read_sequences("SynthIDDetector", [tokens], min_length=self.watermark.ngram_len)
        windows = torch.tensor(tokens).unfold(0, self.watermark.ngram_len, 1)
        contexts = hash_tokens(windows[:, :-1])
        # A context is new unless it is among the ones just before it.
        ages = torch.arange(len(contexts))[:, None] - torch.arange(len(contexts))
        remembered = (ages > 0) & (ages <= self.watermark.context_history_size)
        new = ~((contexts[:, None] == contexts) & remembered).any(1)
        ngrams = extend_hash(contexts, windows[:, -1])[new]
        return torch.stack([self.watermark.g_values(ngrams, key) for key in self.watermark.keys], 1).double()
