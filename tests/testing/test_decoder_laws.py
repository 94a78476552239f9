"""Decoders that are broken in one way each, and the law that says so."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import decodekit as dk
from decodekit.testing import check_decoder

pytestmark = pytest.mark.usefixtures("first_failure")


class GreedyByHand(dk.Decoder[dk.RowState]):
    """Right: greedy search, open for breaking."""

    rows_per_prompt = 1

    def init(self, history: dk.History, limits: dk.Limits) -> dk.RowState:
        return dk.RowState.start(history, limits)

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        return state.emit(scores.argmax(-1), scores)

    def finalize(self, state: dk.RowState) -> dk.Decoded:
        return state.decoded(hypotheses=self.rows_per_prompt)


class KeepsNoShapes(GreedyByHand):
    """Broken: its state grows with every token."""

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        state, selection = super().step(scores, state)
        longer = torch.cat([state.token_log_probs, state.token_log_probs[:, :1]], 1)
        return state._replace(token_log_probs=longer), selection


class ReadsTheDeviceInAStep(GreedyByHand):
    """Broken: looks whether all is done before it does anything."""

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        if state.done.item():
            return state._replace(model_scores=None), dk.Selection(scores.argmax(-1))
        return super().step(scores, state)


class LeavesThePrompt(GreedyByHand):
    """Broken: every row goes on from the row before it, whosever that is."""

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        state, selection = super().step(scores, state)
        return state, selection._replace(source_rows=torch.arange(len(scores)).roll(1))


class GoesOnAfterTheEnd(GreedyByHand):
    """Broken: a step after the end still counts."""

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        after, selection = super().step(scores, state)
        late = state.done.long()
        return after._replace(lengths=(after.lengths - late).clamp(min=1)), selection


class WritesToItsState(GreedyByHand):
    """Broken: the state before the step is no longer what it was."""

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        after, selection = super().step(scores, state)
        state.lengths.copy_(after.lengths)
        return after, selection


class IsNeverDone(GreedyByHand):
    """Broken: forgets that there is a limit."""

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        state, selection = super().step(scores, state)
        return state._replace(done=torch.zeros_like(state.done)), selection


class ListensToOtherPrompts(GreedyByHand):
    """Broken: says what is likeliest on the whole."""

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        return state.emit(scores.mean(0, keepdim=True).argmax(-1).expand(len(scores)), scores)


class ReportsTheNextBest(GreedyByHand):
    """Broken: its reported log-probabilities are those of the next id."""

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        assert state.model_scores is not None
        return super().step(scores, state._replace(model_scores=state.model_scores.roll(1, -1)))


class Flips(NamedTuple):
    """What `ReordersWithoutItsHistory` knows."""

    rows: dk.RowState
    model_scores: Tensor | None = None

    @property
    def history(self) -> dk.History:
        return self.rows.history

    @property
    def done(self) -> Tensor:
        return self.rows.done


class ReordersWithoutItsHistory(dk.Decoder[Flips]):
    """Broken: swaps the two rows of a prompt, and lets their text stay where it is."""

    rows_per_prompt = 2

    def init(self, history: dk.History, limits: dk.Limits) -> Flips:
        return Flips(dk.RowState.start(history, limits))

    def step(self, scores: Tensor, state: Flips) -> tuple[Flips, dk.Selection]:
        rank = torch.arange(len(scores), device=scores.device)[:, None] % 2
        tokens = scores.topk(2).indices.gather(1, rank)[:, 0]
        rows, selection = state.rows._replace(model_scores=state.model_scores).emit(tokens, scores)
        swapped = torch.arange(len(scores), device=scores.device).view(-1, 2).flip(1).flatten()
        return Flips(rows), selection._replace(source_rows=swapped)

    def finalize(self, state: Flips) -> dk.Decoded:
        return state.rows.decoded(hypotheses=2)


def test_a_decoder_that_keeps_the_contract_passes() -> None:
    check_decoder(GreedyByHand(), max_examples=10)


def test_a_decoder_that_keeps_no_shapes_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"KeepsNoShapes.* must keep the shapes of its state"):
        check_decoder(KeepsNoShapes())


def test_a_decoder_that_reads_the_device_in_a_step_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"must not read the device, and .*ReadsTheDeviceInAStep"):
        check_decoder(ReadsTheDeviceInAStep(), max_examples=5)
    check_decoder(ReadsTheDeviceInAStep(), captures=False, max_examples=5)


def test_a_decoder_whose_source_rows_leave_the_prompt_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"LeavesThePrompt.* must keep source rows inside their prompt"):
        check_decoder(LeavesThePrompt())


def test_a_decoder_that_changes_after_it_is_done_is_caught() -> None:
    with pytest.raises(AssertionError, match="must be the same after further steps"):
        check_decoder(GoesOnAfterTheEnd())


def test_a_decoder_that_writes_to_its_state_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"WritesToItsState.* must not write to"):
        check_decoder(WritesToItsState(), max_examples=5)


def test_a_decoder_that_is_never_done_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"IsNeverDone.* must be done after max_new_tokens steps"):
        check_decoder(IsNeverDone())


def test_a_decoder_whose_prompts_listen_to_each_other_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"must be the same with prompt \d alone"):
        check_decoder(ListensToOtherPrompts())


def test_a_decoder_that_reports_other_log_probabilities_is_caught() -> None:
    with pytest.raises(AssertionError, match="not close"):
        check_decoder(ReportsTheNextBest())


def test_a_decoder_that_reorders_the_model_but_not_its_history_is_caught() -> None:
    with pytest.raises(AssertionError, match="not close"):
        check_decoder(ReordersWithoutItsHistory())


def test_a_decoder_may_be_made_anew_for_every_run() -> None:
    seeds = [3, 1, 4, 1, 5]
    check_decoder(lambda numbers: dk.Sample(2, seeds=[seeds[number] for number in numbers]), max_examples=5)
