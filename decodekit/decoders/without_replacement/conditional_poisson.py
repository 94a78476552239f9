r"""Conditional Poisson sampling: sets of a fixed size, by the product of their weights.

$P(S) = \prod_{i \in S} w_i / e_n(w)$ over all sets of size $n$. The elementary symmetric polynomial $e_n$ is
the sum of these products: the coefficient of $z^n$ in $\prod_i (1 + w_i z)$. The latter is computed over a
binary tree: each node has the polynomial of the items below it, up to the degree that is needed. A set is
drawn from the root down, by splitting the number of items still to draw between the two children. All numbers
are logarithms, so nothing cancels for weights of any range.

Source: Hájek, 1964, https://doi.org/10.1214/aoms/1177700375; Chen, Dempster & Liu, 1994,
https://doi.org/10.1093/biomet/81.3.457.
"""

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

# The polynomials of the nodes by level, leaves first; every level but the root's has an even number of nodes.
# Sizes whose names begin with _ differ between levels.
Levels = list[Float64[Tensor, "batch _nodes _coefficients"]]


def multiply(
    first: Float64[Tensor, "*nodes first"], second: Float64[Tensor, "*nodes second"], degree: int
) -> Float64[Tensor, "*nodes coefficients"]:
    """The product of polynomials, given as logarithms of coefficients, truncated at a degree.

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


def polynomials(log_weights: Float64[Tensor, "batch items"], max_size: int) -> Levels:
    """The tree of polynomials of some items, for sets of at most `max_size` of them."""
    level = torch.stack([torch.zeros_like(log_weights), log_weights], -1)
    levels = []
    while level.shape[1] > 1:
        if level.shape[1] % 2:
            one = torch.full_like(level[:, :1], -torch.inf)
            one[..., 0] = 0.0
            level = torch.cat([level, one], 1)
        levels.append(level)
        degree = min(max_size, 2 * (level.shape[-1] - 1))
        level = multiply(level[:, 0::2], level[:, 1::2], degree)
    return [*levels, level]


def draw_set(
    levels: Levels, size: Int64[Tensor, " batch"], uniform: list[Float64[Tensor, "batch _nodes"]]
) -> Bool[Tensor, "batch some"]:
    """Draw a set from every tree.

    Args:
        levels: The trees.
        size: Size of the set, at most the number of items with a weight above 0.
        uniform: Uniform numbers in [0, 1), one per inner node, lowest level first.

    Returns:
        True for drawn items. There may be one more item at the end, which is never drawn.
    """
    counts = size[:, None]
    for level, numbers in zip(reversed(levels[:-1]), reversed(uniform), strict=True):
        left, right = level[:, 0::2], level[:, 1::2]
        counts = counts[:, : left.shape[1]]  # without the node that makes the number even
        rest = counts[..., None] - torch.arange(level.shape[-1], device=level.device)
        exists = (rest >= 0) & (rest < level.shape[-1])
        right = right.gather(-1, rest.clamp(0, level.shape[-1] - 1)).masked_fill(~exists, -torch.inf)
        # The distribution of the number of items drawn below the left child: [batch nodes counts]
        cumulative = (left + right).softmax(-1).cumsum(-1)
        target = numbers[..., None] * cumulative[..., -1:]
        left_counts = (cumulative <= target).sum(-1).clamp(max=level.shape[-1] - 1)
        counts = torch.stack([left_counts, counts - left_counts], -1).flatten(1)
    return counts > 0


def log_inclusion(
    levels: Levels, size: Int64[Tensor, " batch"], chosen: Int64[Tensor, "batch some"]
) -> Float64[Tensor, "batch some"]:
    r"""Log inclusion probabilities of items, $w_i\, e_{n-1}(w \setminus w_i) / e_n(w)$."""
    # The polynomial of all other items: the product of the siblings on the path to the root.
    others = torch.zeros(*chosen.shape, 1, dtype=torch.float64, device=chosen.device)
    node = chosen
    max_size = levels[-1].shape[-1] - 1
    for level in levels[:-1]:
        sibling = level.gather(1, (node ^ 1)[..., None].expand(-1, -1, level.shape[-1]))
        others = multiply(others, sibling, min(max_size, others.shape[-1] + level.shape[-1] - 2))
        node = node // 2
    weights = levels[0][..., 1].gather(1, chosen)
    power = (size - 1)[:, None, None].expand(*chosen.shape, 1).clamp(max=others.shape[-1] - 1)
    total = levels[-1].gather(2, size[:, None, None].clamp(max=max_size))[..., 0]
    return (weights + others.gather(-1, power)[..., 0] - total).clamp(max=0.0)
