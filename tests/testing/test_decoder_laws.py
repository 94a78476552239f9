"""Decoders that are broken in one way each, and the law that says so."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import decodekit as dk
from decodekit.testing import check_decoder

pytestmark = pytest.mark.usefixtures("first_failure")

ALONE = (
    r"must give each prompt the result of a call of its own: prompt \d of \[\[.* in the batch \[.* alone \["
)
OWN_LOG_PROBS = r"reported log-probabilities must be the model's own: reported \[.* model \[.* prompts \[\["


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
    """Broken: reads whether all rows are done."""

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        if state.done.item():
            return state._replace(model_scores=None), dk.Selection(scores.argmax(-1))
        return super().step(scores, state)


class LeavesThePrompt(GreedyByHand):
    """Broken: every row continues the row before it, also that of another prompt."""

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        state, selection = super().step(scores, state)
        return state, selection._replace(source_rows=torch.arange(len(scores)).roll(1))


class GoesOnAfterTheEnd(GreedyByHand):
    """Broken: a step after the end changes the lengths."""

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        after, selection = super().step(scores, state)
        late = state.done.long()
        return after._replace(lengths=(after.lengths - late).clamp(min=1)), selection


class WritesToItsState(GreedyByHand):
    """Broken: changes the state before the step."""

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        after, selection = super().step(scores, state)
        state.lengths.copy_(after.lengths)
        return after, selection


class IsNeverDone(GreedyByHand):
    """Broken: ignores the limit."""

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        state, selection = super().step(scores, state)
        return state._replace(done=torch.zeros_like(state.done)), selection


class ChoosesForTheWholeBatch(GreedyByHand):
    """Broken: emits the token that is most probable on average over the batch."""

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        return state.emit(scores.mean(0, keepdim=True).argmax(-1).expand(len(scores)), scores)


class ReportsTheNextBest(GreedyByHand):
    """Broken: its reported log-probabilities are those of the next id."""

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        assert state.model_scores is not None
        return super().step(scores, state._replace(model_scores=state.model_scores.roll(1, -1)))


class ReturnsItsTokens(GreedyByHand):
    """Broken: its step returns no selection."""

    def step(self, scores: Tensor, state: dk.RowState) -> Any:  # noqa: ANN401 - the wrong type
        return state, scores.argmax(-1)


class BareState(NamedTuple):
    """A state without `model_scores`."""

    history: dk.History
    done: Tensor


class HasNoModelScores(GreedyByHand):
    """Broken: its state has no place for the model's scores."""

    def init(self, history: dk.History, limits: dk.Limits) -> Any:  # noqa: ANN401 - the wrong type
        del limits
        return BareState(history, torch.zeros((), dtype=torch.bool))


class BareRows(NamedTuple):
    """A state without the memory of stopping criteria."""

    history: dk.History
    done: Tensor
    model_scores: Tensor | None = None


class IgnoresTheCriteria(GreedyByHand):
    """Broken: it never starts the stopping criteria."""

    def init(self, history: dk.History, limits: dk.Limits) -> Any:  # noqa: ANN401 - the wrong type
        del limits
        return BareRows(history, torch.zeros((), dtype=torch.bool))


class CountsItsPrompts(dk.RowDecoder):
    """Broken: its choice depends on the number of prompts in the batch, and finished ones are evicted."""

    def choose(self, scores: Tensor, state: dk.RowState) -> Tensor:
        del state
        return scores.topk(min(1 + len(scores), scores.shape[1])).indices[:, -1]


class Flips(NamedTuple):
    """The state of `ReordersWithoutItsHistory`."""

    rows: dk.RowState
    model_scores: Tensor | None = None

    @property
    def history(self) -> dk.History:
        return self.rows.history

    @property
    def done(self) -> Tensor:
        return self.rows.done


class ReordersWithoutItsHistory(dk.Decoder[Flips]):
    """Broken: swaps the two rows of a prompt, and leaves their history in place."""

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
    with pytest.raises(AssertionError, match=r"a step of .*ReadsTheDeviceInAStep.* reads the device"):
        check_decoder(ReadsTheDeviceInAStep(), max_examples=5)
    check_decoder(ReadsTheDeviceInAStep(), captures=False, max_examples=5)


def test_a_decoder_whose_source_rows_leave_the_prompt_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"LeavesThePrompt.* must keep source rows inside their prompt"):
        check_decoder(LeavesThePrompt())


def test_a_decoder_that_changes_after_it_is_done_is_caught() -> None:
    with pytest.raises(
        AssertionError, match=r"must give the same results after further steps: .* at the end \[.* later \["
    ):
        check_decoder(GoesOnAfterTheEnd())


def test_a_decoder_that_writes_to_its_state_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"WritesToItsState.* must not write to"):
        check_decoder(WritesToItsState(), max_examples=5)


def test_a_decoder_that_is_never_done_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"IsNeverDone.* must be done after max_new_tokens steps"):
        check_decoder(IsNeverDone())


def test_a_decoder_whose_prompts_depend_on_each_other_is_caught() -> None:
    with pytest.raises(AssertionError, match=ALONE):
        check_decoder(ChoosesForTheWholeBatch())


def test_a_decoder_that_reports_other_log_probabilities_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"ReportsTheNextBest.*" + OWN_LOG_PROBS):
        check_decoder(ReportsTheNextBest())


def test_a_decoder_that_reorders_the_model_but_not_its_history_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"ReordersWithoutItsHistory.*" + OWN_LOG_PROBS):
        check_decoder(ReordersWithoutItsHistory())


def test_a_decoder_whose_step_returns_something_else_is_refused_by_the_engine() -> None:
    with pytest.raises(
        dk.DecodekitError, match=r"ReturnsItsTokens\.step must return its new state and a Sel"
    ):
        check_decoder(ReturnsItsTokens(), max_examples=5)


def test_a_decoder_whose_state_lacks_model_scores_is_refused_by_the_engine() -> None:
    with pytest.raises(
        dk.DecodekitError, match="the state of HasNoModelScores must be a NamedTuple with the"
    ):
        check_decoder(HasNoModelScores(), max_examples=5)


def test_a_decoder_that_ignores_the_stopping_criteria_is_refused_by_the_engine() -> None:
    with pytest.raises(dk.DecodekitError, match="IgnoresTheCriteria must apply the stopping criteria"):
        check_decoder(IgnoresTheCriteria(), stop=dk.EndIds(4), max_examples=5)


def test_a_decoder_that_does_not_evict_as_it_decodes_is_caught() -> None:
    law = r"CountsItsPrompts.* must give the same results when finished prompts are evicted: .* without \["
    with pytest.raises(AssertionError, match=law):
        check_decoder(CountsItsPrompts(), batch_gives_alone=False)


def test_the_case_is_in_the_message() -> None:
    with pytest.raises(AssertionError) as caught:
        check_decoder(ChoosesForTheWholeBatch())
    notes = "\n".join(caught.value.__notes__)  # Hypothesis may add others, of its own search
    assert "batch=[[" in notes
    assert "seed=" in notes


def test_a_decoder_may_be_made_anew_for_every_run() -> None:
    seeds = [3, 1, 4, 1, 5]
    check_decoder(lambda numbers: dk.Sample(2, seeds=[seeds[number] for number in numbers]), max_examples=5)
