"""Tail-free truncation."""

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
class TailFree(StatelessProcessor):
    r"""Bans the tail of the sorted probabilities, found by their cumulative curvature.

    The curvature is the absolute second difference; the tail begins where its sum exceeds a fraction `z` of
    the total. With $p_1 \ge p_2 \ge \dots \ge p_V$ and the curvatures $d_i = |p_i - 2p_{i+1} + p_{i+2}|$,
    bans the token of rank $i + 1$ where $\sum_{j \le i} d_j > z \sum_j d_j$; the last rank, which has no
    curvature, counts as the end of the sum. Banned tokens have probability 0. Ties are sorted by id, the
    lowest first. Fewer than three tokens, or probabilities on a straight line, have no tail. The likeliest
    token always survives. Does not change the argmax.

    Args:
        z: Fraction of the curvature to keep, in [0, 1]; one number, or one per prompt. 1 keeps all. Usual
            values: 0.9-0.99.

    Raises:
        ValueError: If `z` is outside [0, 1].

    Example:
        >>> scores = torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log()
        >>> TailFree(0.5)(torch.tensor([[0]]), scores).isfinite()
        tensor([[ True,  True, False, False]])

    Source:
        Bricken, 2019, https://www.trentonbricken.com/Tail-Free-Sampling/.

    Hugging Face:
        None. The set is text-generation-webui's; llama.cpp, while it had the method, kept one token fewer.
    """

    z: PerPrompt

    argmax_invariant = True
    batch_independent = True

    def __post_init__(self) -> None:
        set_per_prompt(self, z=FRACTION)

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        if scores.shape[-1] < 3:  # noqa: PLR2004 - a second difference needs three numbers
            return scores
        descending, order = scores.sort(dim=-1, descending=True, stable=True)
        # [rows vocab-2]: the curvature before every rank except the first and the last
        bent = descending.softmax(-1).diff(n=2).abs().cumsum(-1)
        total = bent[:, -1:]
        tail = torch.cat([bent, total], 1) > for_rows(self.z, history, scores) * total
        tail = torch.cat([torch.zeros_like(tail[:, :1]), tail], 1)
        return scores.masked_fill(tail.scatter(1, order, tail), -torch.inf)
