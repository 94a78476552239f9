import math
import time

import pytest
import torch

import decodekit as dk
from decodekit.stopping import max_time
from decodekit.testing import HashModel, check_decoder

HISTORY = dk.History(torch.zeros(3, 4, dtype=torch.long), torch.ones(3, 4, dtype=torch.bool), torch.tensor(2))


class Clock:
    """A clock that stands where a test sets it, in place of `time.monotonic`."""

    now: float

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fed = Clock()
    monkeypatch.setattr(max_time, "time", fed)
    return fed


@pytest.mark.parametrize(("now", "over"), [(100.0, False), (109.999, False), (110.0, True), (200.0, True)])
def test_all_rows_are_finished_once_the_time_is_over_and_none_before(
    clock: Clock, now: float, *, over: bool
) -> None:
    criterion = dk.MaxTime(10)
    memory = criterion.init(HISTORY, dk.StoppingContext(dk.Vocabulary(), started=100.0))
    clock.now = now
    rows, after = criterion.apply(HISTORY, torch.zeros(3), memory)
    assert after == memory
    assert rows.tolist() == [over] * 3


@pytest.mark.parametrize("decoder", [dk.Greedy(), dk.Sample(2, seeds=[1, 2]), dk.BeamSearch(3)], ids=repr)
def test_a_run_without_time_emits_one_token(clock: Clock, decoder: dk.Decoder[dk.RowState]) -> None:
    clock.now = math.inf
    out = dk.decode(HashModel(6), [[1], [2]], decoder, stop=dk.MaxTime(1), max_new_tokens=5)
    assert out.lengths.unique().tolist() == [1]
    assert {reason for row in out.finish_reason for reason in row} == {"time"}


def test_the_clock_starts_with_the_call(clock: Clock) -> None:
    clock.now = time.monotonic()  # before the call, so that no second has passed
    out = dk.decode(HashModel(6), [[1]], dk.Greedy(), stop=dk.MaxTime(1), max_new_tokens=5, end_ids=())
    assert out.lengths.tolist() == [[5]]


def test_a_run_with_time_is_as_without_the_criterion(clock: Clock) -> None:
    clock.now = -math.inf
    model, search = HashModel(6), dk.BeamSearch(3, num_return=3)
    free = dk.decode(model, [[1], [2]], search, end_ids=0, max_new_tokens=5)
    out = dk.decode(model, [[1], [2]], search, stop=dk.MaxTime(1), end_ids=0, max_new_tokens=5)
    assert free.hypotheses() == out.hypotheses()
    assert free.finish_reason == out.finish_reason


def test_it_keeps_the_laws(clock: Clock) -> None:
    clock.now = -math.inf
    check_decoder(dk.BeamSearch(3), stop=dk.MaxTime(1), captures=False, max_examples=10)
    assert not dk.MaxTime(1).capturable


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan, True, "1", None])
def test_seconds_must_be_a_finite_number_above_zero(seconds: float) -> None:
    with pytest.raises(ValueError, match="MaxTime: seconds must be a finite number above 0"):
        dk.MaxTime(seconds)
