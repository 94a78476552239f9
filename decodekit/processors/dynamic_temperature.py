"""Temperature that follows the entropy."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import POSITIVE
from decodekit.processors._shared.parameters import PerPrompt, by_prompt, for_rows, set_per_prompt
from decodekit.processors.base import Scores, StatelessProcessor


@final
@dataclass(frozen=True)
class DynamicTemperature(StatelessProcessor):
    r"""Divides the scores by a temperature that is low where the model is sure and high where it is not.

    $$T = \text{low} + (\text{high} - \text{low}) \left(\frac{H}{H_{\max}}\right)^{\text{exponent}}$$

    $H = -\sum_v P(v) \ln P(v)$ is the entropy, $H_{\max}$ the logarithm of the number of allowed tokens, so
    that truncation before it counts. With one token allowed T is `low`. Does not change the argmax.

    Args:
        low: Temperature at no entropy, above 0; one number, or one per prompt. Usual values: 0.3-1.
        high: Temperature at the greatest entropy, at least `low`; one number, or one per prompt. Usual
            values: 1-2.
        exponent: Above 0; one number, or one per prompt. Above 1 keeps T near `low` until the model is
            quite unsure.

    Raises:
        ValueError: If one of them is not a finite number above 0, or `low` is above `high`.

    Example:
        >>> DynamicTemperature(0.5, 2.0)(torch.tensor([[0]]), torch.tensor([[3.0, 3.0, -torch.inf]]))
        tensor([[1.5000, 1.5000,   -inf]])

    Source:
        kalomaze, 2024, https://github.com/LostRuins/koboldcpp/pull/600.

    Hugging Face:
        None. The formula is llama.cpp's and text-generation-webui's.
    """

    low: PerPrompt
    high: PerPrompt
    exponent: PerPrompt = 1.0

    argmax_invariant = True
    batch_independent = True

    def __post_init__(self) -> None:
        set_per_prompt(self, low=POSITIVE, high=POSITIVE, exponent=POSITIVE)
        for low, high in by_prompt(self.low, self.high):
            if low > high:
                raise ValueError(f"DynamicTemperature: low must be at most high, got {low!r} and {high!r}.")

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        low, high, exponent = (for_rows(v, history, scores) for v in (self.low, self.high, self.exponent))
        entropy = torch.special.entr(scores.softmax(-1)).sum(-1, keepdim=True)
        max_entropy = (scores > -torch.inf).sum(-1, keepdim=True).log()
        # With at most one allowed token the fraction is 0 / 0: no entropy. Sums may round above the maximum.
        ratio = (entropy / max_entropy).nan_to_num(0.0).clamp(max=1)
        temperature: Tensor = low + (high - low) * ratio**exponent
        return scores / temperature
