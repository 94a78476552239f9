import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import HashModel, check_scorer, enumerate_hypotheses, next_log_probs

LAWS = settings(max_examples=200, deadline=None, derandomize=True, database=None)
LOG_PROBS = st.floats(-1e3, 0.0, width=32)


def test_log_prob_is_the_sum_at_every_length() -> None:
    log_probs = torch.tensor([-3.0, -3.0, -0.5])
    assert dk.LogProb()(log_probs, torch.tensor([1, 9, 2])).tolist() == [-3.0, -3.0, -0.5]


def test_log_prob_is_bounded_by_the_sum_so_far() -> None:
    log_probs = torch.tensor([-3.0, -0.5])
    assert dk.LogProb().bound(log_probs, torch.tensor([1, 9]), 20).tolist() == [-3.0, -0.5]


def test_log_prob_takes_any_shape() -> None:
    log_probs = -torch.arange(6.0).view(1, 2, 3)
    assert dk.LogProb()(log_probs, torch.ones(1, 2, 3, dtype=torch.long)).shape == (1, 2, 3)


def test_log_prob_keeps_minus_infinity() -> None:
    assert dk.LogProb()(torch.tensor([-torch.inf]), torch.tensor([3])).tolist() == [-torch.inf]


def test_log_prob_keeps_the_contract_of_scorers() -> None:
    check_scorer(dk.LogProb())


@LAWS
@given(LOG_PROBS, LOG_PROBS, st.integers(1, 50), st.integers(0, 50))
def test_log_prob_bound_is_not_below_any_continuation(
    so_far: float, added: float, length: int, longer: int
) -> None:
    bound = dk.LogProb().bound(torch.tensor([so_far]), torch.tensor([length]), 100)
    continued = dk.LogProb()(torch.tensor([so_far]) + added, torch.tensor([length + longer]))
    assert bound >= continued


@LAWS
@given(LOG_PROBS, st.integers(1, 100))
def test_log_prob_is_hugging_faces_length_penalty_of_zero(log_prob: float, length: int) -> None:
    log_probs = torch.tensor([log_prob])
    expected = log_probs / (length**0.0)
    assert expected.tolist() == dk.LogProb()(log_probs, torch.tensor([length])).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_log_prob_ranks_as_the_probability_of_the_whole_text_does(seed: int) -> None:
    log_probs = next_log_probs(HashModel(3, seed))
    every = enumerate_hypotheses(log_probs, [1], dk.LogProb(), {0}, 4)
    assert sorted(every, key=lambda hypothesis: -hypothesis.log_prob) == every
    assert [hypothesis.log_prob for hypothesis in every] == pytest.approx(
        [hypothesis.score for hypothesis in every],
        rel=1e-6,  # the score is rounded to single precision
    )
