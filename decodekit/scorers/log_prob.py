"""Plain log-probability."""

from dataclasses import dataclass
from typing import final

from typing_extensions import override

from decodekit.scorers.base import AnyLengths, AnyValues, Scorer


@final
@dataclass(frozen=True)
class LogProb(Scorer):
    """Ranks hypotheses by the sum of their log-probabilities, which favours short ones.

    Example:
        >>> LogProb()(torch.tensor([-3.0]), torch.tensor([2]))
        tensor([-3.])

    Hugging Face:
        `length_penalty=0.0`.
    """

    batch_independent = True

    @override
    def __call__(self, log_probs: AnyValues, lengths: AnyLengths) -> AnyValues:
        return log_probs

    @override
    def bound(self, log_probs: AnyValues, lengths: AnyLengths, max_length: int) -> AnyValues:
        return log_probs
