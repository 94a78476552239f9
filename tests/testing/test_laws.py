"""Classes that are broken in one way each, and the law that says so."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import Phase, settings
from torch import Tensor

import decodekit as dk
from decodekit.processors.base import seen_tokens
from decodekit.testing import (
    HashModel,
    check_captures,
    check_decoder,
    check_model,
    check_processor,
    check_scorer,
)
from decodekit.testing.toys import ToySession

VOCAB = 9
LAST_PROFILE = settings.get_current_profile_name()


@pytest.fixture(autouse=True)
def _first_failure() -> Iterator[None]:
    """No search for the simplest failing case: here it only takes time."""
    settings.register_profile("first failure", phases=[Phase.generate])
    settings.load_profile("first failure")
    yield
    settings.load_profile(LAST_PROFILE)


# Processors


class Said(dk.LogitsProcessor):
    """Right: bans every new token, and remembers them in a tensor that leads with rows."""

    def init(self, history: dk.History) -> Any:  # noqa: ANN401 - a memory is any nest
        return torch.zeros(len(history.tokens), VOCAB, dtype=torch.bool, device=history.tokens.device)

    def apply(self, history: dk.History, scores: Tensor, memory: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        memory = memory.scatter(1, last_tokens(history), True)
        return scores.masked_fill(memory, -torch.inf), memory


class SaidInFive(Said):
    """Right, with five tokens."""

    def init(self, history: dk.History) -> Any:  # noqa: ANN401
        return super().init(history)[:, :5]


class SaidByPlace(Said):
    """Broken: remembers the rows by their place, in a list that no reorder reaches."""

    capturable = False

    def init(self, history: dk.History) -> Any:  # noqa: ANN401
        return [0] * len(history.tokens)

    def apply(self, history: dk.History, scores: Tensor, memory: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        memory = [old + int(new) for old, new in zip(memory, last_tokens(history), strict=True)]
        return scores - torch.tensor(memory)[:, None], memory


class SaidAcross(Said):
    """Broken: its memory leads with the vocabulary."""

    def init(self, history: dk.History) -> Any:  # noqa: ANN401
        return super().init(history).T.contiguous()

    def apply(self, history: dk.History, scores: Tensor, memory: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        memory = memory.scatter(0, last_tokens(history).T, True)
        return scores.masked_fill(memory.T, -torch.inf), memory


class SaidOnTheProcessor(Said):
    """Broken: keeps its memory on itself, where no reorder reaches it and runs meet each other."""

    capturable = False

    def init(self, history: dk.History) -> Any:  # noqa: ANN401
        self.memory = super().init(history)
        return ()

    def apply(self, history: dk.History, scores: Tensor, memory: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        scores, self.memory = super().apply(history, scores, self.memory)
        return scores, memory


class SaidInPlace(Said):
    """Broken: writes to the memory that it was given."""

    def apply(self, history: dk.History, scores: Tensor, memory: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        memory.scatter_(1, last_tokens(history), True)
        return scores.masked_fill(memory, -torch.inf), memory


class MixesRows(dk.StatelessProcessor):
    """Broken: takes the mean over the rows away."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        del history
        return scores - scores.nan_to_num(neginf=0.0).mean(0)


class WritesToScores(dk.StatelessProcessor):
    """Broken: writes minus infinity into what it was given."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        del history
        scores[:, 0] = -torch.inf
        return scores


class WritesToTokens(dk.StatelessProcessor):
    """Broken: tidies the text up."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        history.tokens.masked_fill_(~history.valid, 0)
        return scores


class WritesToValid(dk.StatelessProcessor):
    """Broken: marks a column."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        history.valid[:, 0] = ~history.valid[:, 0]
        return scores


class ReadsPadding(dk.StatelessProcessor):
    """Broken: takes padding for text."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        before = torch.arange(history.tokens.shape[1], device=scores.device) < history.position
        return scores - seen_tokens(history.tokens, before.expand_as(history.tokens), VOCAB).float()


class ReadsWhatIsNotYetWritten(dk.StatelessProcessor):
    """Broken: takes what stands behind the text for text."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        behind = torch.arange(history.tokens.shape[1], device=scores.device) >= history.position
        return scores - seen_tokens(history.tokens, behind.expand_as(history.tokens), VOCAB).float()


class MeasuresTheBuffer(dk.StatelessProcessor):
    """Broken: what it does depends on how much room there is."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        return scores * history.tokens.shape[1]


class CountsPadding(dk.StatelessProcessor):
    """Broken: what it does depends on how far the row is padded."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        return scores * (history.position + 1)


class Unbans(dk.StatelessProcessor):
    """Broken: leaves banned tokens a chance."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        del history
        return scores.clamp(min=-100.0)


class MakesNaN(dk.StatelessProcessor):
    """Broken: minus infinity times nothing."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        del history
        return scores * 0.0


class ChangesTheShape(dk.StatelessProcessor):
    """Broken: forgets the last token."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        del history
        return scores[:, :-1]


class SaysItKeepsTheArgmax(dk.StatelessProcessor):
    """Broken: pushes the likeliest token down, and says that it does not."""

    argmax_invariant = True

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        del history
        return scores - 50.0 * torch.zeros_like(scores).scatter(1, scores.argmax(-1, keepdim=True), 1.0)


class ReadsTheDevice(dk.StatelessProcessor):
    """Broken: asks the device for a number, and does not say so."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        text = history.position.item() > 0
        return scores / 2 if text else scores


class ReadsTheDeviceAndSaysSo(ReadsTheDevice):
    """Right: code for the host may be told apart."""

    capturable = False


class HasAShapeThatDependsOnTheData(dk.StatelessProcessor):
    """Broken: picks what it looks at with a mask."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        return scores + 0.0 * history.tokens[history.valid].sum()


def last_tokens(history: dk.History) -> Tensor:
    """The last token of every row, [rows 1]."""
    return history.tokens.index_select(1, (history.position - 1).view(1))


def test_a_processor_that_keeps_the_contract_passes() -> None:
    check_processor(Said(), vocab=VOCAB, max_examples=20)
    check_processor(ReadsTheDeviceAndSaysSo(), max_examples=10)


def test_a_memory_that_no_reorder_reaches_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"SaidByPlace.* memory follows its row"):
        check_processor(SaidByPlace())


@pytest.mark.xfail(raises=RuntimeError, reason="check_processor does not look at the shape of a memory")
def test_a_memory_that_does_not_lead_with_rows_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"SaidAcross"):
        check_processor(SaidAcross(), vocab=VOCAB)


def test_a_memory_kept_on_the_processor_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"SaidOnTheProcessor.* memory follows its row"):
        check_processor(SaidOnTheProcessor(), vocab=VOCAB)


@pytest.mark.xfail(reason="check_processor asks check_captures for a vocabulary of at least 8")
def test_a_processor_made_for_a_small_vocabulary_passes() -> None:
    check_processor(SaidInFive(), vocab=5, max_examples=5)


@pytest.mark.xfail(reason="check_processor does not look whether a memory is written to")
def test_a_processor_that_writes_to_its_memory_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"SaidInPlace.* must not write to"):
        check_processor(SaidInPlace(), vocab=VOCAB)


def test_a_processor_that_mixes_rows_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"MixesRows.* must give row .* what it gives it alone"):
        check_processor(MixesRows())


@pytest.mark.parametrize(
    ("broken", "what"),
    [(WritesToScores(), "scores"), (WritesToTokens(), "tokens"), (WritesToValid(), "valid")],
)
def test_a_processor_that_writes_to_its_arguments_is_caught(broken: dk.LogitsProcessor, what: str) -> None:
    with pytest.raises(AssertionError, match=rf"{type(broken).__name__}.* must not write to {what}"):
        check_processor(broken)


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (ReadsPadding(), "columns that are not valid"),
        (ReadsWhatIsNotYetWritten(), "(columns that are not valid|the capacity)"),
    ],
)
def test_a_processor_that_looks_at_invalid_columns_is_caught(broken: dk.LogitsProcessor, what: str) -> None:
    with pytest.raises(AssertionError, match=rf"{type(broken).__name__}.* must ignore {what}"):
        check_processor(broken)


def test_a_processor_that_depends_on_the_capacity_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"MeasuresTheBuffer.* must ignore the capacity"):
        check_processor(MeasuresTheBuffer())


def test_a_processor_that_counts_padding_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"CountsPadding.* what it gives it alone"):
        check_processor(CountsPadding())


def test_a_processor_that_unbans_is_caught_unless_it_is_meant_to() -> None:
    with pytest.raises(AssertionError, match=r"Unbans.* must not allow what was banned"):
        check_processor(Unbans())
    check_processor(Unbans(), unbans=True, max_examples=20)


def test_a_processor_that_makes_nan_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"MakesNaN.* must not make NaN"):
        check_processor(MakesNaN())


def test_a_processor_that_changes_the_shape_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"ChangesTheShape.* must keep the shape of the scores"):
        check_processor(ChangesTheShape())


def test_a_processor_that_says_falsely_that_it_keeps_the_argmax_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"SaysItKeepsTheArgmax.* says it keeps the argmax"):
        check_processor(SaysItKeepsTheArgmax())


@pytest.mark.parametrize("broken", [ReadsTheDevice(), HasAShapeThatDependsOnTheData()])
def test_a_processor_that_reads_the_device_is_caught(broken: dk.LogitsProcessor) -> None:
    with pytest.raises(AssertionError, match=rf"must not read the device, and .*{type(broken).__name__}"):
        check_processor(broken, max_examples=5)


# Scorers


@dataclass(frozen=True)
class BoundTooLow(dk.Scorer):
    """Broken: says that further tokens cost something, and they need not."""

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        return dk.LengthPenalty(1.0)(log_probs, lengths)

    def bound(self, log_probs: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        return dk.LengthPenalty(1.0).bound(log_probs - 1.0, lengths, max_length // 2)


@dataclass(frozen=True)
class BoundListensToOthers(BoundTooLow):
    """Broken: a bound that holds, but is the best of all and not each one's own."""

    def bound(self, log_probs: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        return dk.LengthPenalty(1.0).bound(log_probs, lengths, max_length).amax().expand_as(log_probs)


@dataclass(frozen=True)
class NoBound(BoundTooLow):
    """Right: infinity is honest."""

    def bound(self, log_probs: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        del lengths, max_length
        return torch.full_like(log_probs, torch.inf)


def test_a_scorer_without_a_bound_passes() -> None:
    check_scorer(NoBound())


def test_a_scorer_with_a_bound_that_is_too_low_is_caught() -> None:
    with pytest.raises(
        AssertionError, match=r"BoundTooLow.* must not be below the score .* of a continuation"
    ):
        check_scorer(BoundTooLow())


@pytest.mark.xfail(reason="check_scorer looks only at the scores one by one, not at the bounds")
def test_a_scorer_with_a_bound_that_is_not_elementwise_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"BoundListensToOthers.* must be elementwise"):
        check_scorer(BoundListensToOthers())


# Decoders


class GreedyByHand(dk.Decoder[dk.RowState]):
    """Right: greedy search, open for breaking."""

    rows_per_prompt = 1

    def init(self, history: dk.History, limits: dk.Limits) -> dk.RowState:
        return dk.RowState.start(history, limits)

    def observe(self, scores: Tensor, state: dk.RowState) -> dk.RowState:
        return state._replace(observed=scores)

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        return state.say(scores.argmax(-1), scores)

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
            return state._replace(observed=None), dk.Selection(scores.argmax(-1))
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
        return state.say(scores.mean(0, keepdim=True).argmax(-1).expand(len(scores)), scores)


class ReportsTheNextBest(GreedyByHand):
    """Broken: what it reports is not the model's log-probability of what it said."""

    def observe(self, scores: Tensor, state: dk.RowState) -> dk.RowState:
        return state._replace(observed=scores.roll(1, -1))


class Flips(NamedTuple):
    """What `ReordersWithoutItsHistory` knows."""

    rows: dk.RowState

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

    def observe(self, scores: Tensor, state: Flips) -> Flips:
        return Flips(state.rows._replace(observed=scores))

    def step(self, scores: Tensor, state: Flips) -> tuple[Flips, dk.Selection]:
        rank = torch.arange(len(scores), device=scores.device)[:, None] % 2
        tokens = scores.topk(2).indices.gather(1, rank)[:, 0]
        rows, selection = state.rows.say(tokens, scores)
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


@pytest.mark.xfail(reason="check_decoder does not look whether the old state is written to")
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


# Models


@dataclass
class Altered:
    """A right model whose sessions are handed to `session`, which breaks them."""

    session: Any
    model: HashModel = HashModel(VOCAB)

    def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[Any, Tensor]:
        session, logits = self.model.start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)
        return self.session(session), logits


@dataclass
class ForgetsTheReorder:
    """Broken: goes on from the row's own cache, whatever it is told."""

    session: ToySession

    def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
        del source_rows
        return self.session.advance(tokens, None)


@dataclass
class OneTokenLate:
    """Broken: hears every token one step late."""

    session: ToySession
    waiting: Tensor | None = None

    def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
        late = tokens if self.waiting is None else self.waiting
        self.waiting = tokens
        return self.session.advance(late, source_rows)


@dataclass
class ReordersAfterwards:
    """Broken: the tokens go to the old rows, and only then the rows change places."""

    session: ToySession

    def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
        logits = self.session.advance(tokens, None)
        self.session._state = self.session._state if source_rows is None else self.session._state[source_rows]
        return logits if source_rows is None else logits[source_rows].contiguous()


@dataclass
class ForgetsTheTokensOfRowsThatStay:
    """Broken: does nothing where no row changes places."""

    session: ToySession

    def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
        return self.session.logits() if source_rows is None else self.session.advance(tokens, source_rows)


@dataclass
class DoublePrecision:
    """Broken: the logits are not float32."""

    session: ToySession

    def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
        return self.session.advance(tokens, source_rows).double()


@dataclass
class Strided:
    """Broken: the logits are a view of something wider."""

    session: ToySession

    def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
        logits = self.session.advance(tokens, source_rows)
        return torch.stack([logits, logits], -1)[..., 0]


class HearsThePadding(HashModel):
    """Broken: takes padding for text."""

    def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[ToySession, Tensor]:
        heard = replace(prompt, mask=torch.ones_like(prompt.mask))
        return super().start(heard, rows_per_prompt=rows_per_prompt, capacity=capacity)


class MixesUpItsRows(HashModel):
    """Broken: widens the batch as a whole, not prompt by prompt."""

    def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[ToySession, Tensor]:
        batch = len(prompt.tokens)
        session, logits = super().start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)
        order = torch.arange(batch * rows_per_prompt).view(batch, -1).T.flatten()
        session._state = session._state[order]
        return session, logits[order].contiguous()


def test_a_model_that_keeps_the_contract_passes() -> None:
    check_model(Altered(lambda session: session), vocab=VOCAB)


@pytest.mark.parametrize(
    "session",
    [
        ForgetsTheReorder,
        OneTokenLate,
        ReordersAfterwards,
        pytest.param(
            ForgetsTheTokensOfRowsThatStay,
            marks=pytest.mark.xfail(reason="check_model never advances without source rows"),
        ),
    ],
)
def test_a_model_whose_cache_goes_wrong_is_caught(session: Any) -> None:  # noqa: ANN401
    with pytest.raises(AssertionError, match="not close"):
        check_model(Altered(session), vocab=VOCAB)


@pytest.mark.parametrize("session", [DoublePrecision, Strided])
def test_a_model_whose_logits_have_the_wrong_form_is_caught(session: Any) -> None:  # noqa: ANN401
    with pytest.raises(AssertionError, match="logits must be float32"):
        check_model(Altered(session), vocab=VOCAB)


@pytest.mark.parametrize("broken", [HearsThePadding(VOCAB), MixesUpItsRows(VOCAB)])
def test_a_model_whose_first_logits_are_wrong_is_caught(broken: dk.Model) -> None:
    with pytest.raises(AssertionError, match="not close"):
        check_model(broken, vocab=VOCAB)


# Captures


class ForgetsItsMemory(Said):
    """Broken: its memory changes its type in the first step."""

    def apply(self, history: dk.History, scores: Tensor, memory: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        scores, memory = super().apply(history, scores, memory.bool())
        return scores, memory.long()


def test_a_step_that_changes_the_type_of_a_memory_cannot_be_captured() -> None:
    with pytest.raises(AssertionError, match="shapes must not change in a step"):
        check_captures(processor=ForgetsItsMemory(), vocab=VOCAB)


def test_a_step_of_what_comes_with_the_library_can_be_captured() -> None:
    processors = [dk.RepetitionPenalty(1.2), dk.NoRepeatNGram(2), dk.MinNewTokens(3, end_ids=2), Said()]
    for decoder in (dk.Greedy(), dk.BeamSearch(3), dk.Sample(2, seeds=[1, 2, 3])):
        check_captures(decoder, processors, vocab=VOCAB)
