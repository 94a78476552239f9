"""The green-list watermark."""

from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import Literal, final

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import NON_NEGATIVE, OPEN_FRACTION, at_least, check_fields, one_of, set_fields
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors.base import Scores, StatelessProcessor
from decodekit.rng import mix

SeedingScheme = Literal["lefthash", "selfhash"]
Lists = Literal["permutation", "hash"]

CANDIDATES = 40  # likeliest tokens that selfhash tries with permutations, as in Hugging Face
_TABLE = 1_000_003  # the size of Hugging Face's table of random numbers
_ON_HOST = torch.device("cpu")  # explicit, to ignore a surrounding `with torch.device(...)`


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
        lists: `"permutation"` draws Hugging Face's lists, each exactly `greenlist_ratio` of the vocabulary,
            one at a time on the host: it cannot be captured, and selfhash tries only the 40 likeliest tokens
            of a row. `"hash"` makes each token green with probability `greenlist_ratio`, all rows and tokens
            at once, and can be captured.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> Watermark(0.5, bias=2.0)(torch.tensor([[7, 2]]), torch.zeros(1, 6))
        tensor([[2., 0., 2., 2., 0., 0.]])

    Source:
        Kirchenbauer et al., 2023, https://arxiv.org/abs/2301.10226, algorithms 2 and 3.

    Hugging Face:
        `WatermarkLogitsProcessor(vocab_size, "cpu", greenlist_ratio, ...)`, bit for bit without padding. On a
        GPU Hugging Face draws other lists; decodekit's are the same on all devices. Hugging Face counts left
        padding, and its selfhash fails if the vocabulary has fewer than 40 tokens or none of the 40 is green.
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
            return self._is_green_by_hash(context, tokens)
        return self._is_green_by_permutation(context, tokens, vocab)

    def _is_green_by_permutation(
        self, context: Int64[Tensor, "rows reach"], tokens: Int64[Tensor, "rows tokens"], vocab: int
    ) -> Bool[Tensor, "rows tokens"]:
        """Find the tokens at the beginning of a random permutation of the vocabulary.

        The permutations are Hugging Face's, drawn one at a time on the host. `lefthash` seeds them with the
        last token of the context, `selfhash` with all of them and the token itself.
        """
        key, size = self.hashing_key, int(vocab * self.greenlist_ratio)
        if self.seeding_scheme == "lefthash":
            lists = [_green_list(key * last, vocab, size) for last in context[:, -1].tolist()]
            return torch.stack(lists).to(tokens.device).gather(1, tokens)
        numbers = _table(key)
        host = tokens.to(_ON_HOST)
        token_numbers = numbers[host % _TABLE] + 1  # [rows tokens]
        seeds = key * token_numbers * token_numbers  # wraps around, as in Hugging Face
        for column in context.to(_ON_HOST).T:
            seeds = seeds.minimum(key * (numbers[column % _TABLE] + 1)[:, None] * token_numbers)
        green = [
            [bool(_green_list(seed, vocab, size)[token]) for seed, token in zip(*pair, strict=True)]
            for pair in zip(seeds.tolist(), host.tolist(), strict=True)
        ]
        return torch.tensor(green, dtype=torch.bool, device=_ON_HOST).view(host.shape).to(tokens.device)

    def _is_green_by_hash(
        self, context: Int64[Tensor, "rows reach"], tokens: Int64[Tensor, "rows tokens"]
    ) -> Bool[Tensor, "rows tokens"]:
        """Make each token green with probability `greenlist_ratio`, by a hash of it and its context.

        `lefthash` hashes the last token of the context, `selfhash` all of them.
        """
        secret = _secret(self.hashing_key)
        if self.seeding_scheme == "lefthash":
            bits = mix(mix(context[:, -1:] + secret) + tokens)
        else:
            token_hash = mix(tokens + secret)
            least = mix(token_hash + tokens)
            for column in context.T:  # the number of columns is constant
                least = torch.minimum(least, mix(token_hash + column[:, None]))
            bits = mix(least)
        # A signed integer of 64 random bits is below this with probability `greenlist_ratio`.
        return bits < int(self.greenlist_ratio * 2**64) - 2**63

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


@lru_cache(maxsize=128)
def _green_list(seed: int, vocab: int, size: int) -> Bool[Tensor, " vocab"]:
    generator = torch.Generator(_ON_HOST).manual_seed(seed % (2**64 - 1))
    green = torch.randperm(vocab, generator=generator, device=_ON_HOST)[:size]
    return torch.zeros(vocab, dtype=torch.bool, device=_ON_HOST).index_fill(0, green, True)


@lru_cache(maxsize=4)
def _table(key: int) -> Int64[Tensor, " table"]:
    generator = torch.Generator(_ON_HOST).manual_seed(key)
    return torch.randperm(_TABLE, generator=generator, device=_ON_HOST)


@lru_cache(maxsize=256)
def _secret(key: int) -> int:
    return int(mix(torch.tensor(key, device=_ON_HOST)))
