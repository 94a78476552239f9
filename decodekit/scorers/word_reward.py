"""Reward per token."""

from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.validation import FINITE, check_fields, check_type
from decodekit.scorers.base import AnyLengths, AnyValues, Scorer
from decodekit.scorers.log_prob import LogProb


@final
@dataclass(frozen=True)
class WordReward(Scorer):
    r"""Adds a reward per token: favours long hypotheses without a limit.

    $s(y) + r \, |y|$, the end id included in the length.

    Args:
        reward: $r$, nats per token, any finite number; below 0 favours short hypotheses. Usual values: 0.1-1.
        base: The scorer to adjust.

    Raises:
        ValueError: If `reward` is not finite.

    Example:
        >>> WordReward(0.5)(torch.tensor([-3.0]), torch.tensor([2]))
        tensor([-2.])

    Source:
        He et al., 2016, https://doi.org/10.1609/aaai.v30i1.9983. `BoundedLengthReward` has a limit.

    Hugging Face:
        None.
    """

    reward: float
    _: KW_ONLY
    base: Scorer = LogProb()

    batch_independent = True

    def __post_init__(self) -> None:
        check_fields(self, reward=FINITE)
        check_type("WordReward", "base", self.base, Scorer, "a Scorer such as LogProb()")

    @override
    def __call__(self, log_probs: AnyValues, lengths: AnyLengths) -> AnyValues:
        return self.base(log_probs, lengths) + self.reward * lengths

    @override
    def bound(self, log_probs: AnyValues, lengths: AnyLengths, max_length: int) -> AnyValues:
        rewarded = torch.full_like(lengths, max_length) if self.reward > 0 else lengths
        return self.base.bound(log_probs, lengths, max_length) + self.reward * rewarded
