"""Conditional Poisson sampling, against sums over all sets."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decodekit.decoders.without_replacement.conditional_poisson import (
    draw_set,
    log_inclusion,
    multiply,
    polynomials,
)
from tests.decoders.without_replacement.theory import deviation

WEIGHTS = [0.5, 2.0, 1.0, 0.0, 3.0, 0.1, 7.0]
INF = math.inf


def chances(weights: list[float], size: int) -> dict[tuple[int, ...], float]:
    """The probability of every set of positive probability."""
    products = {
        items: math.prod(weights[item] for item in items)
        for items in itertools.combinations(range(len(weights)), size)
    }
    total = sum(products.values())
    return {items: product / total for items, product in products.items() if product}


def logs(weights: list[float], batch: int = 1) -> Tensor:
    return torch.tensor(weights, dtype=torch.float64).log().expand(batch, -1)


def test_polynomials_are_multiplied_up_to_a_degree() -> None:
    # (1 + 2z)(3 + z + 5z^2) = 3 + 7z + 7z^2 + 10z^3
    first, second = logs([1, 2])[0], logs([3, 1, 5])[0]
    for degree in range(4):
        product = multiply(first, second, degree).exp()
        torch.testing.assert_close(product, torch.tensor([3.0, 7.0, 7.0, 10.0]).double()[: degree + 1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9), st.data())
def test_the_root_sums_over_all_sets_and_inclusion_sums_over_those_with_the_item(
    weights: list[float], data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, len(weights)))
    levels = polynomials(logs(weights), size)
    products = [math.prod(items) for items in itertools.combinations(weights, size)]
    assert levels[-1][0, 0, size].exp().item() == pytest.approx(sum(products), rel=1e-9)
    sets = chances(weights, size)
    items = torch.arange(len(weights))[None]
    got = log_inclusion(levels, torch.tensor([size]), items).exp()[0].tolist()
    expected = [sum(p for chosen, p in sets.items() if item in chosen) for item in range(len(weights))]
    assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_sets_are_drawn_with_their_probabilities(size: int) -> None:
    number = 20_000
    levels = polynomials(logs(WEIGHTS, number), size)
    generator = torch.Generator().manual_seed(size)
    uniform = [
        torch.rand(number, level.shape[1] // 2, dtype=torch.float64, generator=generator)
        for level in levels[:-1]
    ]
    sets = draw_set(levels, torch.full((number,), size), uniform)
    assert not sets[:, len(WEIGHTS) :].any()
    drawn = Counter(tuple(row.nonzero()[:, 0].tolist()) for row in sets)
    assert deviation(drawn, chances(WEIGHTS, size), number) < 4.5
    # The square roots of the weights fail the same test.
    assert size == 6 or deviation(drawn, chances([weight**0.5 for weight in WEIGHTS], size), number) > 20


def test_batch_entries_may_have_sets_of_different_sizes() -> None:
    levels = polynomials(logs(WEIGHTS, 3), 4)
    uniform = [torch.full((3, level.shape[1] // 2), 0.5).double() for level in levels[:-1]]
    size = torch.tensor([4, 1, 2])
    assert draw_set(levels, size, uniform).sum(-1).tolist() == [4, 1, 2]
    inclusion = log_inclusion(levels, size, torch.arange(7).expand(3, -1)).exp()
    torch.testing.assert_close(inclusion.sum(-1), size.double())
    torch.testing.assert_close(inclusion[1], torch.tensor(WEIGHTS).double() / sum(WEIGHTS))


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2.0**-52])
def test_items_of_weight_0_are_never_drawn(number: float) -> None:
    for mask in itertools.product([0.0, 0.7, 1e30], repeat=5):
        positive = sum(weight > 0 for weight in mask)
        if positive < 2:
            continue
        levels = polynomials(logs(list(mask)), 2)
        uniform = [torch.full((1, level.shape[1] // 2), number, dtype=torch.float64) for level in levels[:-1]]
        drawn = draw_set(levels, torch.tensor([2]), uniform)[0, :5]
        assert drawn.sum() == 2
        assert not (drawn & (torch.tensor(mask) == 0)).any()


def test_weights_of_any_range_keep_their_precision() -> None:
    # One item has the weight e^1000, a thousand others e^-1000 each.
    weights = torch.full((1, 1001), -1000.0, dtype=torch.float64)
    weights[0, 500] = 1000.0
    levels = polynomials(weights, 2)
    inclusion = log_inclusion(levels, torch.tensor([2]), torch.tensor([[500, 0]]))
    torch.testing.assert_close(inclusion, torch.tensor([[0.0, -math.log(1000)]]).double())


def test_the_only_item_is_always_drawn() -> None:
    levels = polynomials(logs([0.3]), 2)
    assert draw_set(levels, torch.tensor([1]), []).tolist() == [[True]]
    assert log_inclusion(levels, torch.tensor([1]), torch.tensor([[0]])).tolist() == [[0.0]]
