"""Top-a truncation."""

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import FRACTION
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import Scores, StatelessProcessor


@final
@dataclass(frozen=True)
class TopA(StatelessProcessor):
    r"""Bans every token less likely than `a` times the square of the largest probability.

    Keeps $\{v : P(v) \ge a \cdot \max_u P(u)^2\}$: as the model gets less sure, the threshold falls faster
    than that of `MinP`. At least one token always survives. Does not change the argmax.

    Args:
        a: The factor, in [0, 1]; one number, or one per prompt. 0 keeps every token. Usual value: 0.2.

    Raises:
        ValueError: If `a` is outside [0, 1].

    Example:
        >>> scores = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> TopA(1.0)(torch.tensor([[0]]), scores).isfinite()
        tensor([[ True,  True, False]])

    Source:
        Bo Peng (BlinkDL), https://github.com/BlinkDL/RWKV-LM, section "The top-a sampling method".

    Hugging Face:
        None.
    """

    a: PerPrompt

    argmax_invariant = True
    batch_independent = True

    def __post_init__(self) -> None:
        set_per_prompt(self, a=FRACTION)

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        probs = scores.softmax(-1)
        floor = for_rows(self.a, history, scores) * probs.amax(-1, keepdim=True).square()
        return scores.masked_fill(probs < floor, -torch.inf)
