"""Answers that come late change nothing, and are not waited for."""

from typing import Any

import pytest
import torch
from torch import Tensor

import decodekit as dk
from decodekit.engine.batching import eviction
from decodekit.engine.batching.eviction import AHEAD, DeferredFlags, ImmediateFlags, async_flags_for
from decodekit.testing import HashModel


class Slow:
    """A copy that arrives after it was asked for a number of times."""

    def __init__(self, flags: Tensor, asked: int) -> None:
        self._flags, self.left, self.waited = flags.clone(), asked, False

    def arrived(self) -> bool:
        self.left -= 1
        return self.left < 0

    def wait(self) -> None:
        self.left, self.waited = 0, True

    def flags(self) -> list[bool]:
        return self._flags.tolist()


def flags(*values: bool) -> Tensor:
    return torch.tensor(values)


def test_what_the_host_can_read_is_answered_at_once_and_once() -> None:
    answers = ImmediateFlags()
    assert answers.newest() is None
    answers.ask(flags(False, True))
    assert answers.newest() == [False, True]
    assert answers.newest() is None


def test_an_answer_that_has_not_arrived_is_not_waited_for() -> None:
    answers = DeferredFlags(lambda flags: Slow(flags, asked=2))
    answers.ask(flags(True))
    assert [answers.newest() for _ in range(4)] == [None, None, [True], None]


def test_the_newest_of_several_answers_counts() -> None:
    answers = DeferredFlags(lambda flags: Slow(flags, asked=0))
    answers.ask(flags(False))
    answers.ask(flags(True))
    assert answers.newest() == [True]


def test_the_host_runs_ahead_by_a_few_questions_only() -> None:
    copies: list[Slow] = []

    def copy(flags: Tensor) -> Slow:
        copies.append(Slow(flags, asked=1000))
        return copies[-1]

    answers = DeferredFlags(copy)
    for number in range(AHEAD):
        assert answers.newest() is None
        answers.ask(flags(number == 0))
    assert answers.newest() == [True]
    assert [True, *[False] * (AHEAD - 1)] == [copy.waited for copy in copies]


def test_what_is_on_its_way_can_be_forgotten() -> None:
    for answers in (ImmediateFlags(), DeferredFlags(lambda flags: Slow(flags, asked=0))):
        answers.ask(flags(True))
        answers.forget()
        assert answers.newest() is None


def test_a_cpu_answers_at_once() -> None:
    assert isinstance(async_flags_for(torch.device("cpu")), ImmediateFlags)
    assert isinstance(async_flags_for(torch.device("cuda")), DeferredFlags)


@pytest.mark.parametrize("asked", [0, 1, 2, 5, 100])
@pytest.mark.parametrize("decoder", [dk.Greedy(), dk.BeamSearch(3, num_return=2)], ids=["greedy", "beams"])
def test_late_answers_change_no_result(
    decoder: dk.Decoder[Any], asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompts = HashModel(7, 3, end_ids=(2,)), [[1], [3, 4], [5, 6, 0, 1], [2, 2], [0]]
    expected = dk.decode(model, prompts, decoder, max_new_tokens=20)
    monkeypatch.setattr(
        eviction, "async_flags_for", lambda _: DeferredFlags(lambda flags: Slow(flags, asked))
    )
    for check_every in (1, 3):
        out = dk.decode(model, prompts, decoder, max_new_tokens=20, check_every=check_every)
        assert expected.hypotheses() == out.hypotheses()
        assert torch.equal(expected.token_log_probs, out.token_log_probs)
        assert torch.equal(expected.parents, out.parents)
        assert torch.equal(expected.score, out.score)


def test_a_run_that_is_done_stops_a_few_steps_later(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dk.testing.MarkovModel([[1.0, 0.0], [1.0, 0.0]], end_ids=(0,))
    monkeypatch.setattr(
        eviction, "async_flags_for", lambda _: DeferredFlags(lambda flags: Slow(flags, asked=2))
    )
    steps: list[int] = []
    dk.decode(model, [[1], [1]], dk.Greedy(), max_new_tokens=50, on_step=steps.append)
    assert steps == [1, 2, 3]


@pytest.mark.cuda
def test_a_cuda_device_answers_in_order() -> None:
    answers = async_flags_for(torch.device("cuda"))
    given = [flags(number % 2 == 0, True).cuda() for number in range(AHEAD)]
    for one in given:
        answers.ask(one)
    torch.cuda.synchronize()
    assert given[-1].tolist() == answers.newest()
    assert async_flags.AHEAD >= 1
