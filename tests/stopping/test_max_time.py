import math
import time

import pytest
import torch

import decodekit as dk
from decodekit.testing import HashModel, check_decoder

HISTORY = dk.History(torch.zeros(3, 4, dtype=torch.long), torch.ones(3, 4, dtype=torch.bool), torch.tensor(2))


def over(seconds: float, spent: float) -> list[bool]:
    """Its result for a run that has taken some time."""
    criterion = dk.MaxTime(seconds)
    memory = criterion.init(HISTORY, dk.StoppingContext(dk.Vocabulary(), time.monotonic() - spent))
    rows, after = criterion.apply(HISTORY, torch.zeros(3), memory)
    assert after == memory
    return rows.tolist()


def test_all_rows_are_finished_once_the_time_is_over_and_none_before() -> None:
    # The clock of this machine may stand still for seconds, not for a quarter of an hour.
    assert over(1000, spent=1001) == [True] * 3
    assert over(1000, spent=1) == [False] * 3


@pytest.mark.parametrize("decoder", [dk.Greedy(), dk.Sample(2, seeds=[1, 2]), dk.BeamSearch(3)], ids=repr)
def test_a_run_without_time_emits_one_token(decoder: dk.Decoder[dk.RowState]) -> None:
    out = dk.decode(HashModel(6), [[1], [2]], decoder, stop=dk.MaxTime(1e-9), max_new_tokens=5)
    assert out.lengths.unique().tolist() == [1]
    assert {reason for row in out.finish_reason for reason in row} == {"time"}


def test_a_run_with_time_is_as_without_the_criterion() -> None:
    model, search = HashModel(6), dk.BeamSearch(3, num_return=3)
    free = dk.decode(model, [[1], [2]], search, end_ids=0, max_new_tokens=5)
    out = dk.decode(model, [[1], [2]], search, stop=dk.MaxTime(1e6), end_ids=0, max_new_tokens=5)
    assert free.hypotheses() == out.hypotheses()
    assert free.finish_reason == out.finish_reason


def test_it_keeps_the_laws() -> None:
    check_decoder(dk.BeamSearch(3), stop=dk.MaxTime(1e6), captures=False, max_examples=10)
    assert not dk.MaxTime(1).capturable


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan, True, "1", None])
def test_seconds_must_be_a_finite_number_above_zero(seconds: float) -> None:
    with pytest.raises(ValueError, match="MaxTime: seconds must be a finite number above 0"):
        dk.MaxTime(seconds)
