"""Blocking of the source's n-grams."""

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.history import History, Source
from decodekit.core.validation import at_least, check_fields, set_fields
from decodekit.processors._shared.sources import SourceIds, SourceProcessor, read_source
from decodekit.processors.base import Scores, put


@final
@dataclass(frozen=True)
class EncoderNoRepeatNGram(SourceProcessor):
    """Bans every token that would complete an n-gram of the source.

    So no n-gram of the source occurs in the output. Padding of the source does not count.

    Args:
        n: Length of the n-grams in tokens, at least 1; 1 bans every token of the source. Usual values: 2-4.
        source: The ids not to copy, for all prompts, or a list of them, one per prompt. None: the
            encoder's input, and for decoder-only models the prompt.

    Raises:
        ValueError: If `n` is not an integer of at least 1, or `source` holds anything but integers of at
            least 0; in a run, if the number of sources differs from the batch size.

    Example:
        >>> model = dk.testing.MarkovModel([[0.3, 0.4, 0.3]] * 3)
        >>> new = EncoderNoRepeatNGram(2, source=[0, 1, 0, 2])
        >>> dk.decode(model, [0], dk.Greedy(), new, max_new_tokens=3).hypotheses()
        [[[0, 0, 0]]]

    Source:
        Paulus, Xiong & Socher, 2018, https://arxiv.org/abs/1705.04304, section 2.5, for the output's n-grams.

    Hugging Face:
        `EncoderNoRepeatNGramLogitsProcessor(n, encoder_input_ids)`, bit for bit without padding, which
        Hugging Face treats as tokens. `generate` passes the encoder's ids, or the prompt.
    """

    n: int
    source: SourceIds = None

    def __post_init__(self) -> None:
        check_fields(self, n=at_least(1))
        set_fields(self, source=read_source("EncoderNoRepeatNGram", self.source))

    @override
    def compare(self, history: History, scores: Scores, source: Source) -> Scores:
        capacity = history.tokens.shape[1]
        if self.n > source.tokens.shape[1] or self.n > capacity + 1:
            return scores
        # The last n - 1 tokens; a row that has fewer completes no n-gram.
        columns = history.position + torch.arange(1 - self.n, 0, device=scores.device)
        suffix = columns.clamp(0, capacity - 1)
        enough = (history.valid.index_select(1, suffix) & (columns >= 0)).all(-1)
        # [rows windows n]: every n-gram of the source
        windows = source.tokens.unfold(1, self.n, 1)
        unpadded = source.valid.unfold(1, self.n, 1).all(-1)
        same = windows[..., :-1] == history.tokens.index_select(1, suffix)[:, None]
        copied = same.all(-1) & unpadded & enough[:, None]
        return put(scores, windows[..., -1], copied, -torch.inf)
