"""The green-list watermark."""

from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import NON_NEGATIVE, OPEN_FRACTION, at_least, check_fields, one_of, set_fields
from decodekit.processors._shared.green_lists import Lists, SeedingScheme, green_by_hash, green_by_permutation
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import Scores, StatelessProcessor

CANDIDATES = 40  # likeliest tokens that selfhash tries with permutations, as in Hugging Face


@final
@dataclass(frozen=True)
class Watermark(StatelessProcessor):
    r"""Raises the scores of a secret part of the vocabulary, so that the output can be recognized later.

    After every context c a list G(c) of green tokens is drawn from the key, and

    $$s'(v) = s(v) + \text{bias} \cdot [v \in G(c)].$$

    The output then contains more green tokens than chance gives, and `WatermarkDetector` counts them. Rows
    with fewer than `context_width` tokens stay as they are.

    Args:
        greenlist_ratio: Part of the vocabulary that is green, in (0, 1). Usual values: 0.25-0.5.
        bias: $\text{bias}$, at least 0, in units of the scores; one number, or one per prompt. Usual values:
            0.5-2.
        hashing_key: The secret, in [0, 2**63). Choose your own.
        seeding_scheme: The tokens that decide the list: `"lefthash"` the last one, `"selfhash"` the last
            `context_width` ones, the token itself included.
        context_width: Tokens that selfhash depends on, at least 1. Usual values: 1-4.
        lists: `"permutation"` draws Hugging Face's lists, each of exactly the ratio's size, one at a time on
            the host: it cannot be captured, and selfhash tries only the 40 likeliest tokens of a row.
            `"hash"` makes each token green with the ratio's probability, all rows and tokens at once, and can
            be captured.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> Watermark(0.5, bias=2.0)(torch.tensor([[7, 2]]), torch.zeros(1, 6))
        tensor([[2., 0., 2., 2., 0., 0.]])

    Source:
        Kirchenbauer et al., 2023, https://arxiv.org/abs/2301.10226, algorithms 2 and 3.

    Hugging Face:
        `WatermarkLogitsProcessor(vocab_size, "cpu", greenlist_ratio, ...)`, bit for bit without padding. On a
        GPU theirs draws other lists; ours are the same everywhere. Theirs counts left padding, and its
        selfhash fails if the vocabulary has fewer than 40 tokens or none of the 40 is green.
    """

    greenlist_ratio: float = 0.25
    bias: PerPrompt = 2.0
    hashing_key: int = 15485863
    seeding_scheme: SeedingScheme = "lefthash"
    context_width: int = 1
    _: KW_ONLY
    lists: Lists = "permutation"

    batch_independent = True

    def __post_init__(self) -> None:
        check_fields(
            self,
            greenlist_ratio=OPEN_FRACTION._replace(words="in (0, 1)"),
            hashing_key=at_least(0)._replace(words="an integer in [0, 2**63)"),
            seeding_scheme=one_of(SeedingScheme),
            context_width=at_least(1),
            lists=one_of(Lists),
        )
        set_per_prompt(self, bias=NON_NEGATIVE)
        set_fields(self, capturable=self.lists == "hash")

    @property
    def reach(self) -> int:
        """Number of preceding tokens that decide if a token is green."""
        return self.context_width - (self.seeding_scheme == "selfhash")

    def is_green(
        self, context: Int64[Tensor, "rows reach"], tokens: Int64[Tensor, "rows tokens"], vocab: int
    ) -> Bool[Tensor, "rows tokens"]:
        """Mark the tokens that are green after the context of their row, of `reach` tokens."""
        if self.lists == "hash":
            return green_by_hash(context, tokens, self.greenlist_ratio, self.hashing_key, self.seeding_scheme)
        size = int(vocab * self.greenlist_ratio)
        return green_by_permutation(context, tokens, vocab, size, self.hashing_key, self.seeding_scheme)

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        vocab = scores.shape[-1]
        columns = history.position + torch.arange(-self.reach, 0, device=scores.device)
        context = history.tokens.index_select(1, columns.clamp(min=0))
        if self.lists == "permutation" and self.seeding_scheme == "selfhash":
            likeliest = scores.sort(-1, descending=True).indices[:, :CANDIDATES]
            likeliest_green = self.is_green(context, likeliest, vocab)
            green = torch.zeros_like(scores, dtype=torch.bool).scatter(1, likeliest, likeliest_green)
        else:
            all_tokens = torch.arange(vocab, device=scores.device).expand_as(scores)
            green = self.is_green(context, all_tokens, vocab)
        green = green & (history.valid.sum(-1, keepdim=True) >= self.context_width)
        return torch.where(green, scores + for_rows(self.bias, history, scores), scores)
