"""Tapes: replays on the same memory, and refusal of functions that read tensors."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from decodekit.accelerate.tape import CALLS_BEFORE_TAPE, CannotRecordError, Tape
from decodekit.core.device import is_recorded

MORE = CALLS_BEFORE_TAPE + 4


class Pair(NamedTuple):
    """A result with a structure."""

    first: Tensor
    second: tuple[Tensor, None]


def test_a_replay_reads_and_writes_the_tensors_of_the_recorded_run() -> None:
    total, step = torch.tensor(0), torch.tensor(1)
    tape = Tape(lambda: total.add_(step) * 10)
    results = []
    for number in range(MORE):
        step.fill_(number)
        results.append(int(tape()))
    assert results == [0, 10, 30, 60, 100, 150, 210]
    assert int(total) == 21


def test_after_the_first_calls_the_function_is_no_longer_called() -> None:
    calls = []

    def function() -> Tensor:
        calls.append(1)
        return torch.ones(2).sum()

    tape = Tape(function)
    assert [float(tape()) for _ in range(MORE)] == [2.0] * MORE
    assert len(calls) == CALLS_BEFORE_TAPE + 1


def test_every_result_is_new_and_has_the_same_structure() -> None:
    number = torch.zeros(3)

    def function() -> Pair:
        number.add_(1)
        parts = number.split(1)  # several results of one operation
        return Pair(torch.cat([parts[2], parts[0]]), (number.topk(1).indices, None))

    tape = Tape(function)
    results = [tape() for _ in range(MORE)]
    assert all(isinstance(result, Pair) and result.second[1] is None for result in results)
    assert [result.first.tolist() for result in results] == [[n, n] for n in range(1, MORE + 1)]


def test_views_are_views_in_a_replay() -> None:
    buffer = torch.zeros(2, 3)

    def function() -> Tensor:
        row = buffer[1]
        row += 1
        row[2:].mul_(2)
        return buffer.clone()

    tape = Tape(function)
    expected = [0.0, 0.0, 0.0]
    for _ in range(MORE):
        expected = [expected[0] + 1, expected[1] + 1, (expected[2] + 1) * 2]
        assert tape().tolist() == [[0, 0, 0], expected]


def test_draws_go_on_in_their_stream() -> None:
    generator, probs = torch.Generator().manual_seed(3), torch.empty(4)
    tape = Tape(lambda: probs.exponential_(1, generator=generator).clone())
    drawn = [tape() for _ in range(MORE)]
    generator.manual_seed(3)
    assert all(torch.equal(one, torch.empty(4).exponential_(1, generator=generator)) for one in drawn)


def test_constants_and_infinities_are_kept() -> None:
    scores = torch.tensor([1.0, 2.0])
    tape = Tape(lambda: scores.masked_fill(torch.tensor([True, False]), -torch.inf))
    assert [tape().tolist() for _ in range(MORE)] == [[-torch.inf, 2.0]] * MORE


X = torch.tensor([0.5, 2.0])


@pytest.mark.parametrize(
    "function",
    [
        X.tolist,
        X.numpy,
        X.cpu,
        lambda: X.max().item(),
        lambda: bool((X > 0).all()),
        lambda: int(X[0]),
        lambda: [float(number) for number in X],
        lambda: torch.equal(X, X),
        lambda: torch.allclose(X, X),
        lambda: X[X > 1],
        X.nonzero,
        X.unique,
        lambda: torch.masked_select(X, X > 1),
        # These read without an operation that the dispatcher sees.
        lambda: torch.tensor([X[0], X[1]]),
        lambda: torch.as_tensor([[X[0]]]),
        lambda: X.new_tensor([X[0]]),
        lambda: str(X),
        lambda: copy.deepcopy(X),
        lambda: copy.copy(X),
        lambda: torch.nn.Parameter(X * 2) + 1,
        lambda: (X * 2).as_subclass(torch.Tensor) + 1,
        lambda: torch.empty(0).set_((X * 2).untyped_storage(), 0, (2,)) + 1,  # type: ignore[call-overload]
        lambda: torch.rand(2, generator=torch.Generator().manual_seed(1)),
    ],
)
def test_functions_that_read_tensors_or_have_shapes_of_data_are_refused(
    function: Callable[[], object],
) -> None:
    tape = Tape(function)
    for _ in range(CALLS_BEFORE_TAPE):
        tape()
    reasons = ".*reads a|.*depends on data|.*uses the memory|a view of|every call creates"
    with pytest.raises(CannotRecordError, match=f"Tape: ({reasons})"):
        tape()


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor([0.0, 0.0]),
        lambda: torch.as_tensor([0.0, 0.0]),
        lambda: torch.from_numpy(np.zeros(2, dtype=np.float32)),
        lambda: X.new_tensor([0, 0]),
    ],
)
def test_tensors_made_of_numbers_are_new_at_every_call(make: Callable[[], Tensor]) -> None:
    tape = Tape(lambda: make().add_(X))
    results = [tape() for _ in range(MORE)]
    assert all(torch.equal(result, X) for result in results)
    assert len({result.data_ptr() for result in results}) == MORE


def test_copying_a_tensor_does_not_count_as_reading_it() -> None:
    tape = Tape(lambda: torch.as_tensor(X) + X.new_tensor([0, 0]) + (2 * X).data)
    assert all(torch.equal(tape(), 3 * X) for _ in range(MORE))


def test_catching_the_refusal_does_not_avoid_it() -> None:
    def function() -> Tensor:
        try:
            return X * X.max().item()
        except ValueError:
            return X

    tape = Tape(function)
    for _ in range(CALLS_BEFORE_TAPE):
        tape()
    with pytest.raises(CannotRecordError, match="reads a tensor"):
        tape()


def test_other_errors_are_raised_unchanged() -> None:
    def function() -> Tensor:
        if is_recorded.get():
            raise RuntimeError("out of memory")
        return X

    tape = Tape(function)
    for _ in range(CALLS_BEFORE_TAPE):
        tape()
    with pytest.raises(RuntimeError, match="out of memory"):
        tape()
    assert not is_recorded.get()


def test_the_tape_frees_its_tensors() -> None:
    held = torch.zeros(2)
    tape = Tape(lambda held=held: held.add_(1) + 0)  # type: ignore[misc]
    for _ in range(MORE):
        tape()
    seen = weakref.ref(held)
    gc.disable()
    try:
        del tape, held
        assert seen() is None
    finally:
        gc.enable()


def test_an_index_of_numbers_has_no_shape_of_data() -> None:
    place = torch.tensor([1])
    tape = Tape(lambda: X[place])
    assert [tape().tolist() for _ in range(MORE)] == [[2.0]] * MORE
