import math

import pytest
import torch
from torch import Tensor

from decodekit.processors._shared.log_probs import keep_banned, lift_impossible, normalize, weigh

INF = math.inf
LEAST = -149 * math.log(2)


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers])


def test_a_power_of_probability_0_is_0_above_weight_0_and_1_at_it() -> None:
    log_probs = row(math.log(0.25), -INF)
    assert weigh(2.0, log_probs)[0, 1] == -INF
    assert weigh(0.0, log_probs).tolist() == [[0.0, 0.0]]


def test_a_power_of_probability_0_is_finite_below_weight_0_and_the_largest_of_its_row() -> None:
    assert weigh(-1.0, row(-1.0, -INF))[0].tolist() == pytest.approx([1.0, -LEAST])
    assert weigh(-0.5, row(-300.0, -INF, 0.0)).tolist() == [[150.0, 150.0, 0.0]]


def test_every_row_has_its_own_weight() -> None:
    weights = torch.tensor([[1.0], [0.0], [-1.0]])
    out = weigh(weights, row(-2.0, -INF).expand(3, -1))
    assert out[:, 0].tolist() == [-2.0, 0.0, 2.0]
    assert out[:, 1].tolist() == pytest.approx([-INF, 0.0, -LEAST])


def test_lifting_leaves_possible_tokens_as_they_are() -> None:
    assert lift_impossible(row(-500.0, -1.0, 0.0)).tolist() == [[-500.0, -1.0, 0.0]]
    assert lift_impossible(row(-INF, -INF))[0].tolist() == pytest.approx([LEAST, LEAST])


def test_banned_tokens_stay_banned_and_a_row_of_them_is_no_nan() -> None:
    assert keep_banned(row(math.nan, INF, 1.0), row(-INF, -INF, 0.0)).tolist() == [[-INF, -INF, 1.0]]
    assert normalize(row(-INF, -INF)).tolist() == [[-INF, -INF]]
    assert normalize(row(5.0, 5.0, -INF)).exp()[0].tolist() == pytest.approx([0.5, 0.5, 0.0])
