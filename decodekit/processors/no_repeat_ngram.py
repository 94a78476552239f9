"""Blocking of repeated n-grams."""

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import at_least, check_fields
from decodekit.processors.base import Scores, StatelessProcessor, put


@final
@dataclass(frozen=True)
class NoRepeatNGram(StatelessProcessor):
    """Bans every token that would complete an n-gram of the sequence a second time, prompt included.

    Args:
        n: Length of the n-grams in tokens, at least 1; 1 bans every token of the sequence. Usual values: 2-4.

    Raises:
        ValueError: If `n` is not an integer of at least 1.

    Example:
        >>> NoRepeatNGram(2)(torch.tensor([[1, 2, 1]]), torch.zeros(1, 4))
        tensor([[0., 0., -inf, 0.]])

    Source:
        Paulus, Xiong & Socher, 2018, https://arxiv.org/abs/1705.04304, section 2.5.

    Hugging Face:
        `NoRepeatNGramLogitsProcessor(n)`, bit for bit without padding. Hugging Face counts left padding, so
        in a batch it may ban the pad id for a prompt that contains it; decodekit does not.
    """

    n: int

    batch_independent = True

    def __post_init__(self) -> None:
        check_fields(self, n=at_least(1))

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        if self.n > history.tokens.shape[1]:
            return scores
        # The last n - 1 tokens. A row with fewer tokens contains no n-gram.
        suffix = (history.position + torch.arange(1 - self.n, 0, device=scores.device)).clamp(min=0)
        # [rows windows n]: every n-gram of the buffer
        windows = history.tokens.unfold(1, self.n, 1)
        valid = history.valid.unfold(1, self.n, 1).all(-1)
        same = windows[..., :-1] == history.tokens.index_select(1, suffix)[:, None]
        repeats = same.all(-1) & valid
        return put(scores, windows[..., -1], repeats, -torch.inf)
