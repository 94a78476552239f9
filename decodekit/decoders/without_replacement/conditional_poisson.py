r"""Conditional Poisson sampling: sets of a given size, each as likely as the product of its items' weights.

$P(S) = \prod_{i \in S} w_i / e_n(w)$ over all sets of size $n$, where the elementary symmetric polynomial
$e_n$ sums the products of all of them. It is the coefficient of $z^n$ in $\prod_i (1 + w_i z)$, and that
product is taken here over a binary tree: each node has the polynomial of the items below it, up to the degree
that matters. Sets are drawn by walking down the tree, splitting at every node the number of items still to be
drawn. With logarithms throughout there is nothing to cancel, whatever the range of the weights.

Source: Hájek, 1964, https://doi.org/10.1214/aoms/1177700375; Chen, Dempster & Liu, 1994,
https://doi.org/10.1093/biomet/81.3.457.
"""

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

# Of every level, leaves first, the polynomials of the nodes; an even number, but for the root.
# Sizes whose names begin with _ are not the same for all.
Levels = list[Float64[Tensor, "batch _nodes _coefficients"]]


def multiply(
    first: Float64[Tensor, "*nodes first"], second: Float64[Tensor, "*nodes second"], degree: int
) -> Float64[Tensor, "*nodes coefficients"]:
    """The product of polynomials, without the terms above a degree. All are logarithms of coefficients.

    Example:
        >>> one_and_z = torch.zeros(2, dtype=torch.float64)
        >>> multiply(one_and_z, one_and_z, 2).exp().round(decimals=6)
        tensor([1., 2., 1.], dtype=torch.float64)
    """
    power = torch.arange(degree + 1, device=first.device)[:, None]
    rest = power - torch.arange(first.shape[-1], device=first.device)
    exists = (rest >= 0) & (rest < second.shape[-1])
    # [*nodes coefficients] -> [*nodes coefficients first]
    factors = second[..., rest.clamp(0, second.shape[-1] - 1)].masked_fill(~exists, -torch.inf)
    return (first[..., None, :] + factors).logsumexp(-1)


def polynomials(log_weights: Float64[Tensor, "batch items"], most: int) -> Levels:
    """The tree of some items.

    Args:
        log_weights: Logarithms of the weights; minus infinity for what is never drawn.
        most: Items that may be drawn, which is the degree that matters.
    """
    level = torch.stack([torch.zeros_like(log_weights), log_weights], -1)
    levels = []
    while level.shape[1] > 1:
        if level.shape[1] % 2:
            one = torch.full_like(level[:, :1], -torch.inf)
            one[..., 0] = 0.0
            level = torch.cat([level, one], 1)
        levels.append(level)
        degree = min(most, 2 * (level.shape[-1] - 1))
        level = multiply(level[:, 0::2], level[:, 1::2], degree)
    return [*levels, level]


def draw_set(
    levels: Levels, size: Int64[Tensor, " batch"], uniform: list[Float64[Tensor, "batch _nodes"]]
) -> Bool[Tensor, "batch some"]:
    """Draws a set from every tree.

    Args:
        levels: The trees.
        size: How many items, at most as many as have a weight above 0.
        uniform: Numbers in [0, 1), one for every inner node, those of the lowest first.

    Returns:
        Which items are drawn; there may be one more at the end, which never is.
    """
    counts = size[:, None]
    for level, numbers in zip(reversed(levels[:-1]), reversed(uniform), strict=True):
        left, right = level[:, 0::2], level[:, 1::2]
        counts = counts[:, : left.shape[1]]  # without what only made their number even
        rest = counts[..., None] - torch.arange(level.shape[-1], device=level.device)
        exists = (rest >= 0) & (rest < level.shape[-1])
        right = right.gather(-1, rest.clamp(0, level.shape[-1] - 1)).masked_fill(~exists, -torch.inf)
        # How many of the items to draw are below the left child: [batch nodes counts]
        cumulative = (left + right).softmax(-1).cumsum(-1)
        target = numbers[..., None] * cumulative[..., -1:]
        to_the_left = (cumulative <= target).sum(-1).clamp(max=level.shape[-1] - 1)
        counts = torch.stack([to_the_left, counts - to_the_left], -1).flatten(1)
    return counts > 0


def log_inclusion(
    levels: Levels, size: Int64[Tensor, " batch"], chosen: Int64[Tensor, "batch some"]
) -> Float64[Tensor, "batch some"]:
    r"""Logarithms of the probabilities of items to be drawn, $w_i\, e_{n-1}(w \setminus w_i) / e_n(w)$.

    Args:
        levels: The trees.
        size: How many items are drawn, at least 1.
        chosen: Which items to look at.
    """
    # The polynomial of all other items: a product of what stands beside the way to the root.
    others = torch.zeros(*chosen.shape, 1, dtype=torch.float64, device=chosen.device)
    node = chosen
    most = levels[-1].shape[-1] - 1
    for level in levels[:-1]:
        beside = level.gather(1, (node ^ 1)[..., None].expand(-1, -1, level.shape[-1]))
        others = multiply(others, beside, min(most, others.shape[-1] + level.shape[-1] - 2))
        node = node // 2
    weights = levels[0][..., 1].gather(1, chosen)
    some = (size - 1)[:, None, None].expand(*chosen.shape, 1).clamp(max=others.shape[-1] - 1)
    whole = levels[-1].gather(2, size[:, None, None].clamp(max=most))[..., 0]
    return (weights + others.gather(-1, some)[..., 0] - whole).clamp(max=0.0)
