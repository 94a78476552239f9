"""Green lists: the tokens that a watermark favours after a context."""

from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from decodekit.rng import mix

SeedingScheme = Literal["lefthash", "selfhash"]
Lists = Literal["permutation", "hash"]

_TABLE = 1_000_003  # the size of Hugging Face's table of random numbers
_ON_HOST = torch.device("cpu")  # named, so that a surrounding `with torch.device(...)` does not count


def green_by_permutation(
    context: Int64[Tensor, "rows reach"],
    tokens: Int64[Tensor, "rows tokens"],
    vocab: int,
    size: int,
    key: int,
    scheme: SeedingScheme,
) -> Bool[Tensor, "rows tokens"]:
    """Find the tokens among the first `size` of a random permutation of the vocabulary.

    The permutations are Hugging Face's, drawn one at a time on the host. `lefthash` seeds them with the last
    token of the context, `selfhash` with all of them and the token itself.
    """
    if scheme == "lefthash":
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


def green_by_hash(
    context: Int64[Tensor, "rows reach"],
    tokens: Int64[Tensor, "rows tokens"],
    ratio: float,
    key: int,
    scheme: SeedingScheme,
) -> Bool[Tensor, "rows tokens"]:
    """Make each token green with probability `ratio`, by a hash of it and its context.

    `lefthash` hashes the last token of the context, `selfhash` all of them.
    """
    secret = _secret(key)
    if scheme == "lefthash":
        bits = mix(mix(context[:, -1:] + secret) + tokens)
    else:
        token_hash = mix(tokens + secret)
        least = mix(token_hash + tokens)
        for column in context.T:  # of a constant number of columns
            least = torch.minimum(least, mix(token_hash + column[:, None]))
        bits = mix(least)
    # A signed integer of 64 random bits is below this with probability `ratio`.
    return bits < int(ratio * 2**64) - 2**63


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
