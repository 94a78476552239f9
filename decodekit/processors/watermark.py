"""The green-list watermark."""

from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import is_count, is_finite, is_number
from decodekit.processors._shared.green_lists import LISTS, SCHEMES, Lists, SeedingScheme, hashed, permuted
from decodekit.processors._shared.parameters import PerPrompt, for_rows, per_prompt
from decodekit.processors.base import StatelessProcessor

CANDIDATES = 40  # how many of the likeliest tokens selfhash tries with permutations, as Hugging Face does


@final
@dataclass(frozen=True)
class Watermark(StatelessProcessor):
    r"""Raises the scores of a secret part of the vocabulary, so that the text can be recognised later.

    After every context c a list G(c) of green tokens is drawn from the key, and

    $$s'(v) = s(v) + \text{bias} \cdot [v \in G(c)].$$

    Text of the model then holds more green tokens than chance gives, which `WatermarkDetector` counts.
    Rows with fewer than `context_width` tokens are left as they are.

    Args:
        greenlist_ratio: Part of the vocabulary that is green, in (0, 1). Usual values: 0.25-0.5.
        bias: What is added, at least 0, in units of the scores; one number, or one for each prompt. Usual
            values: 0.5-2.
        hashing_key: The secret, in [0, 2**63). Take your own.
        seeding_scheme: What decides the list: `"lefthash"` the last token, `"selfhash"` the last
            `context_width` tokens, of which the token itself is one.
        context_width: Tokens that selfhash looks at, at least 1. Usual values: 1-4.
        lists: `"permutation"` draws Hugging Face's lists, each of exactly the ratio's size, one at a time
            on the host: it cannot be captured, and selfhash tries the 40 likeliest tokens of a row only.
            `"hash"` makes each token green with the ratio's probability, all rows and tokens at once,
            and can be captured.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> Watermark(0.5, bias=2.0)(torch.tensor([[7, 2]]), torch.zeros(1, 6))
        tensor([[2., 0., 2., 2., 0., 0.]])

    Source:
        Kirchenbauer et al., 2023, https://arxiv.org/abs/2301.10226, algorithms 2 and 3.

    Hugging Face:
        `WatermarkLogitsProcessor(vocab_size, "cpu", greenlist_ratio, ...)`, bit for bit without padding.
        On a GPU theirs draws other lists; ours are the same everywhere. Theirs takes left padding for
        text, and selfhash fails where fewer than 40 tokens are in the vocabulary or none of the 40 is
        green.
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
        if not (is_number(self.greenlist_ratio) and 0 < self.greenlist_ratio < 1):
            raise ValueError(f"Watermark: greenlist_ratio must be in (0, 1), got {self.greenlist_ratio!r}.")
        bias = per_prompt(
            "Watermark",
            "bias",
            self.bias,
            lambda value: is_finite(value) and value >= 0,
            "a finite number of at least 0",
        )
        if not (is_count(self.hashing_key, 0) and self.hashing_key < 2**63):
            raise ValueError(
                f"Watermark: hashing_key must be an integer in [0, 2**63), got {self.hashing_key!r}."
            )
        if self.seeding_scheme not in SCHEMES:
            raise ValueError(
                f"Watermark: seeding_scheme must be one of {SCHEMES}, got {self.seeding_scheme!r}."
            )
        if not is_count(self.context_width, 1):
            raise ValueError(
                f"Watermark: context_width must be an integer of at least 1, got {self.context_width!r}."
            )
        if self.lists not in LISTS:
            raise ValueError(f"Watermark: lists must be one of {LISTS}, got {self.lists!r}.")
        object.__setattr__(self, "bias", bias)  # a frozen field
        object.__setattr__(self, "capturable", self.lists == "hash")

    @property
    def reach(self) -> int:
        """How many tokens before a token decide whether it is green."""
        return self.context_width - (self.seeding_scheme == "selfhash")

    def is_green(
        self, context: Int64[Tensor, "rows reach"], tokens: Int64[Tensor, "rows tokens"], vocab: int
    ) -> Bool[Tensor, "rows tokens"]:
        """Whether each token is green after the context of its row, of `reach` tokens."""
        if self.lists == "hash":
            return hashed(context, tokens, self.greenlist_ratio, self.hashing_key, self.seeding_scheme)
        size = int(vocab * self.greenlist_ratio)
        return permuted(context, tokens, vocab, size, self.hashing_key, self.seeding_scheme)

    def process(
        self, history: History, scores: Float32[Tensor, "rows vocab"]
    ) -> Float32[Tensor, "rows vocab"]:
        """The scores, with the bias on the green tokens."""
        vocab = scores.shape[-1]
        columns = history.position + torch.arange(-self.reach, 0, device=scores.device)
        context = history.tokens.index_select(1, columns.clamp(min=0))
        everything = torch.arange(vocab, device=scores.device).expand_as(scores)
        if self.lists == "permutation" and self.seeding_scheme == "selfhash":
            likeliest = scores.sort(-1, descending=True).indices[:, :CANDIDATES]
            found = self.is_green(context, likeliest, vocab)
            green = torch.zeros_like(scores, dtype=torch.bool).scatter(1, likeliest, found)
        else:
            green = self.is_green(context, everything, vocab)
        green = green & (history.valid.sum(-1, keepdim=True) >= self.context_width)
        return torch.where(green, scores + for_rows(self.bias, history, scores), scores)
