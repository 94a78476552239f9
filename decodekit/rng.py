"""Random draws that neither wait for the device nor depend on the rest of the batch."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2**64 / golden ratio, as a signed 64-bit integer
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def draw(
    probs: Float[Tensor, "rows vocab"], generator: torch.Generator | None = None
) -> Int64[Tensor, " rows"]:
    """Draws one token per row from `probs`.

    With E_v independent and exponential of rate 1, argmax_v p_v / E_v is distributed as p. The same generator
    gives the tokens of `torch.multinomial(probs, 1)`, which waits for the device.

    Args:
        probs: Probabilities; rows need not sum to 1.
        generator: The stream to draw from; None is torch's global one.

    Example:
        >>> draw(torch.tensor([[0.0, 1.0, 0.0]]))
        tensor([1])

    Source:
        The exponential race; Luce, 1959, *Individual Choice Behavior*.
    """
    race = torch.empty_like(probs).exponential_(1, generator=generator)
    # Divide in place: allocating another tensor of this size takes as long as filling it.
    return torch.div(probs.detach(), race, out=race).argmax(-1)


def draw_several(
    probs: Float[Tensor, "rows choices"], number: int, generator: torch.Generator | None = None
) -> Int64[Tensor, "rows number"]:
    """Draws several different choices per row, one by one, each by its share of the remaining probability.

    The same generator gives the draws of `torch.multinomial(probs, number)`, which takes at most 2**24
    choices. Choices of probability 0 come last.

    Args:
        probs: Probabilities; rows need not sum to 1.
        number: Number of draws, at most the number of choices.
        generator: The stream to draw from; None is torch's global one.

    Example:
        >>> sorted(draw_several(torch.tensor([[0.5, 0.0, 0.5]]), 2)[0].tolist())
        [0, 2]

    Source:
        The exponential race; Efraimidis & Spirakis, 2006, https://doi.org/10.1016/j.ipl.2005.11.003.
    """
    race = torch.empty_like(probs).exponential_(1, generator=generator)
    return torch.div(probs.detach(), race, out=race).topk(number).indices


def draw_seeded(
    probs: Float[Tensor, "rows vocab"],
    seeds: Int64[Tensor, " rows"],
    streams: Int64[Tensor, " rows"],
    step: Int64[Tensor, ""],
) -> Int64[Tensor, " rows"]:
    """Draws one token per row; the draw of a row depends only on its own arguments.

    For each row, a uniform number, a hash of `(seed, stream, step)`, is looked up in the cumulative
    distribution. There is no state: the same arguments give the same token in any batch.

    Args:
        probs: Probabilities; rows need not sum to 1.
        seeds: The seed of each row's prompt.
        streams: The index of each row among the samples of its prompt.
        step: Number of tokens drawn before.

    Example:
        >>> zero = torch.tensor([0])
        >>> draw_seeded(torch.tensor([[0.0, 1.0, 0.0]]), zero, zero, torch.tensor(0))
        tensor([1])
    """
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    # `uniform` is at most 1 - 2**-52, so the target stays below the total and never lands on a token
    # of probability 0: the first entry above it is one where the cumulative sum rose.
    target = uniform(seeds, streams, step)[:, None] * cumulative[:, -1:]
    if probs.device.type == "cpu":
        # A sum from left to right never falls, so the place can be looked up.
        drawn = torch.searchsorted(cumulative, target, right=True)[:, 0]
    else:
        drawn = (cumulative <= target).sum(-1)
    return drawn.clamp(max=probs.shape[-1] - 1)


def uniform(
    seeds: Int64[Tensor, " rows"], streams: Int64[Tensor, " rows"], step: Int64[Tensor, ""]
) -> Float64[Tensor, " rows"]:
    """Numbers in [0, 1), one per row, which depend only on the row's own arguments.

    Source:
        SplitMix64; Steele, Lea & Flood, 2014, https://doi.org/10.1145/2660193.2660195, fig. 16.
    """
    bits = mix(mix(mix(seeds) + streams) + step)
    return _shift_right(bits, 12).double() * 2.0**-52


def uniform_several(
    seeds: Int64[Tensor, " rows"], streams: Int64[Tensor, " rows"], step: Int64[Tensor, ""], number: int
) -> Float64[Tensor, "rows number"]:
    """Several numbers in [0, 1) per row, which depend only on the row's own arguments.

    Args:
        seeds: The seed of each row's prompt.
        streams: The index of each row among the rows of its prompt.
        step: Number of draws before.
        number: Numbers per row; the first ones do not depend on it.
    """
    bits = mix(mix(mix(seeds) + streams) + step)
    bits = mix(bits[:, None] + torch.arange(number, device=seeds.device))
    return _shift_right(bits, 12).double() * 2.0**-52


def gumbel_seeded(
    seeds: Int64[Tensor, " rows"], streams: Int64[Tensor, " rows"], step: Int64[Tensor, ""], number: int
) -> Float64[Tensor, "rows number"]:
    """Numbers of the standard Gumbel distribution, which depend only on the row's own arguments.

    Args:
        seeds: The seed of each row's prompt.
        streams: The index of each row among the rows of its prompt.
        step: Number of draws before.
        number: Numbers per row; the first ones do not depend on it.

    Example:
        >>> zero = torch.tensor([0])
        >>> gumbel_seeded(zero, zero, torch.tensor(0), 3).shape
        torch.Size([1, 3])
    """
    # In the middle of an interval of 2**-52, so neither 0 nor 1: both logarithms are finite.
    inner = uniform_several(seeds, streams, step, number) + 2.0**-53
    return -(-inner.log()).log()


def mix(value: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """A bijective hash of 64-bit integers in which every input bit moves every output bit."""
    value = value + _GOLDEN
    value = (value ^ _shift_right(value, 30)) * _MIX_1
    value = (value ^ _shift_right(value, 27)) * _MIX_2
    return value ^ _shift_right(value, 31)


def _shift_right(value: Int64[Tensor, "*shape"], bits: int) -> Int64[Tensor, "*shape"]:
    # torch's shift of a signed integer copies the sign; the mask makes it a logical one.
    shifted: Tensor = (value >> bits) & (2 ** (64 - bits) - 1)
    return shifted
