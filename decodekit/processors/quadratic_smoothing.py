"""Quadratic smoothing."""

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import FROM_ONE, POSITIVE
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import Scores, StatelessProcessor


@final
@dataclass(frozen=True)
class QuadraticSmoothing(StatelessProcessor):
    r"""Moves the best tokens closer together and the rest further away.

    With the distance from the best score, $d(v) = s(v) - \max_u s(u) \le 0$, and the curve c,

    $$s'(v) = \max_u s(u) + \text{factor} \cdot \left(\tfrac{c - 1}{2}\, d(v)^3 - \tfrac{3 - c}{2}\,
    d(v)^2\right).$$

    A curve of 1 is a parabola, one of 3 a cubic. Curves up to 3 keep the order of the tokens; under larger
    curves, tokens close to the best one overtake it.

    Args:
        factor: Steepness, above 0; one number, or one per prompt. Tokens nearer to the best one than 1 /
            factor come closer (with a curve of 1). Usual values: 0.1-0.5.
        curve: At least 1; one number, or one per prompt. Usual values: 1-3.

    Raises:
        ValueError: If `factor` is not above 0 and finite, or `curve` is not finite and at least 1.

    Example:
        >>> QuadraticSmoothing(0.5)(torch.tensor([[0]]), torch.tensor([[9.0, 8.0, 7.0, 5.0]]))
        tensor([[9.0000, 8.5000, 7.0000, 1.0000]])

    Source:
        kalomaze, 2024, https://github.com/ggml-org/llama.cpp/pull/6445; the curve is that of
        https://github.com/oobabooga/text-generation-webui/pull/5551.

    Hugging Face:
        None. The formula is text-generation-webui's.
    """

    factor: PerPrompt
    curve: PerPrompt = 1.0

    # False even for curves up to 3: the top of the parabola is so flat that different scores can become
    # equal.
    argmax_invariant = False
    batch_independent = True

    def __post_init__(self) -> None:
        set_per_prompt(self, factor=POSITIVE, curve=FROM_ONE)

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        factor, curve = (for_rows(value, history, scores) for value in (self.factor, self.curve))
        top = scores.amax(-1, keepdim=True)
        below = scores - top
        # Factor out the square: if it overflows, the sum of both terms could be NaN.
        smoothed = top + factor * below.square() * ((curve - 1) / 2 * below - (3 - curve) / 2)
        return torch.where(scores.isfinite() & top.isfinite(), smoothed, scores)
