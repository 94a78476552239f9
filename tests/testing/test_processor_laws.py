"""Processors that are broken in one way each, and the law that says so."""

from typing import Any

import pytest
import torch
from torch import Tensor

import decodekit as dk
from decodekit.testing import check_processor

pytestmark = pytest.mark.usefixtures("first_failure")

VOCAB = 9


def seen_tokens(tokens: Tensor, where: Tensor) -> Tensor:
    """True for every id that occurs in the columns of `tokens` selected by `where`."""
    ids = torch.where(where & (tokens < VOCAB), tokens, VOCAB)
    seen = torch.zeros((len(tokens), VOCAB + 1), dtype=torch.bool, device=tokens.device)
    return seen.scatter(1, ids, torch.ones_like(ids, dtype=torch.bool))[:, :VOCAB]


class EmittedTokens(dk.LogitsProcessor):
    """Right: bans every new token, and remembers them in a tensor that leads with rows."""

    def init(self, history: dk.History) -> Any:  # noqa: ANN401 - a memory is any nest
        return torch.zeros(len(history.tokens), VOCAB, dtype=torch.bool, device=history.tokens.device)

    def apply(self, history: dk.History, scores: Tensor, memory: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        memory = memory.scatter(1, last_tokens(history), True)
        return scores.masked_fill(memory, -torch.inf), memory


class EmittedTokensOfFive(EmittedTokens):
    """Right, with five tokens."""

    def init(self, history: dk.History) -> Any:  # noqa: ANN401
        return super().init(history)[:, :5]


class RemembersByPlace(EmittedTokens):
    """Broken: remembers the rows by their place, in a list that no reorder reaches."""

    capturable = False

    def init(self, history: dk.History) -> Any:  # noqa: ANN401
        return [0] * len(history.tokens)

    def apply(self, history: dk.History, scores: Tensor, memory: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        memory = [old + int(new) for old, new in zip(memory, last_tokens(history), strict=True)]
        return scores - torch.tensor(memory)[:, None], memory


class LeadsWithTheVocabulary(EmittedTokens):
    """Broken: its memory leads with the vocabulary."""

    def init(self, history: dk.History) -> Any:  # noqa: ANN401
        return super().init(history).T.contiguous()

    def apply(self, history: dk.History, scores: Tensor, memory: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        memory = memory.scatter(0, last_tokens(history).T, True)
        return scores.masked_fill(memory.T, -torch.inf), memory


class RemembersOnItself(EmittedTokens):
    """Broken: keeps its memory on itself, where no reorder reaches it and runs share it."""

    capturable = False

    def init(self, history: dk.History) -> Any:  # noqa: ANN401
        self.memory = super().init(history)
        return ()

    def apply(self, history: dk.History, scores: Tensor, memory: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        scores, self.memory = super().apply(history, scores, self.memory)
        return scores, memory


class WritesToItsMemory(EmittedTokens):
    """Broken: writes to its memory."""

    def apply(self, history: dk.History, scores: Tensor, memory: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        memory.scatter_(1, last_tokens(history), True)
        return scores.masked_fill(memory, -torch.inf), memory


class MixesRows(dk.StatelessProcessor):
    """Broken: subtracts the mean over the rows."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        del history
        return scores - scores.nan_to_num(neginf=0.0).mean(0)


class WritesToScores(dk.StatelessProcessor):
    """Broken: writes minus infinity into its argument."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        del history
        scores[:, 0] = -torch.inf
        return scores


class WritesToTokens(dk.StatelessProcessor):
    """Broken: overwrites padding with zeros."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        history.tokens.masked_fill_(~history.valid, 0)
        return scores


class WritesToValid(dk.StatelessProcessor):
    """Broken: marks a column."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        history.valid[:, 0] = ~history.valid[:, 0]
        return scores


class ReadsPadding(dk.StatelessProcessor):
    """Broken: reads padding as tokens."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        before = torch.arange(history.tokens.shape[1], device=scores.device) < history.position
        return scores - seen_tokens(history.tokens, before.expand_as(history.tokens)).float()


class ReadsWhatIsNotYetWritten(dk.StatelessProcessor):
    """Broken: reads unwritten columns as tokens."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        behind = torch.arange(history.tokens.shape[1], device=scores.device) >= history.position
        return scores - seen_tokens(history.tokens, behind.expand_as(history.tokens)).float()


class MeasuresTheBuffer(dk.StatelessProcessor):
    """Broken: its scores depend on the capacity."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        return scores * history.tokens.shape[1]


class CountsPadding(dk.StatelessProcessor):
    """Broken: its scores depend on the padding of the row."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        return scores * (history.position + 1)


class Unbans(dk.StatelessProcessor):
    """Broken: allows banned tokens."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        del history
        return scores.clamp(min=-100.0)


class MakesNaN(dk.StatelessProcessor):
    """Broken: multiplies minus infinity by zero."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        del history
        return scores * 0.0


class ChangesTheShape(dk.StatelessProcessor):
    """Broken: drops the last token."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        del history
        return scores[:, :-1]


class DeclaresArgmaxInvariance(dk.StatelessProcessor):
    """Broken: lowers the most probable token, and declares that it does not."""

    argmax_invariant = True

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        del history
        return scores - 50.0 * torch.zeros_like(scores).scatter(1, scores.argmax(-1, keepdim=True), 1.0)


class ReadsTheDevice(dk.StatelessProcessor):
    """Broken: reads the device, and declares that it can be captured."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        text = history.position.item() > 0
        return scores / 2 if text else scores


class ReadsTheDeviceAndDeclaresIt(ReadsTheDevice):
    """Right: declares that it cannot be captured."""

    capturable = False


class HasAShapeThatDependsOnTheData(dk.StatelessProcessor):
    """Broken: selects columns with a mask."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        return scores + 0.0 * history.tokens[history.valid].sum()


def last_tokens(history: dk.History) -> Tensor:
    """The last token of every row, [rows 1]."""
    return history.tokens.index_select(1, (history.position - 1).view(1))


def test_a_processor_that_keeps_the_contract_passes() -> None:
    check_processor(EmittedTokens(), vocab=VOCAB, max_examples=20)
    check_processor(ReadsTheDeviceAndDeclaresIt(), max_examples=10)


def test_a_memory_that_no_reorder_reaches_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"RemembersByPlace.* memory follows its row"):
        check_processor(RemembersByPlace())


def test_a_memory_that_does_not_lead_with_rows_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"LeadsWithTheVocabulary"):
        check_processor(LeadsWithTheVocabulary(), vocab=VOCAB)


def test_a_memory_kept_on_the_processor_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"RemembersOnItself.* memory follows its row"):
        check_processor(RemembersOnItself(), vocab=VOCAB)


def test_a_processor_made_for_a_small_vocabulary_passes() -> None:
    check_processor(EmittedTokensOfFive(), vocab=5, max_examples=5)


def test_a_processor_that_writes_to_its_memory_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"WritesToItsMemory.* must not write to"):
        check_processor(WritesToItsMemory(), vocab=VOCAB)


def test_a_processor_that_mixes_rows_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"MixesRows.* must give each row the scores it gets alone"):
        check_processor(MixesRows())


@pytest.mark.parametrize(
    ("broken", "name"),
    [(WritesToScores(), "scores"), (WritesToTokens(), "tokens"), (WritesToValid(), "valid")],
)
def test_a_processor_that_writes_to_its_arguments_is_caught(broken: dk.LogitsProcessor, name: str) -> None:
    with pytest.raises(AssertionError, match=rf"{type(broken).__name__}.* must not write to {name}"):
        check_processor(broken)


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        (ReadsPadding(), "columns that are not valid"),
        (ReadsWhatIsNotYetWritten(), "(columns that are not valid|the capacity)"),
    ],
)
def test_a_processor_that_looks_at_invalid_columns_is_caught(broken: dk.LogitsProcessor, name: str) -> None:
    with pytest.raises(AssertionError, match=rf"{type(broken).__name__}.* must ignore {name}"):
        check_processor(broken)


def test_a_processor_that_depends_on_the_capacity_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"MeasuresTheBuffer.* must ignore the capacity"):
        check_processor(MeasuresTheBuffer())


def test_a_processor_that_counts_padding_is_caught() -> None:
    with pytest.raises(
        AssertionError, match=r"CountsPadding.* must give each row the scores it gets alone.* row \["
    ):
        check_processor(CountsPadding())


def test_a_processor_that_unbans_is_caught_unless_it_is_meant_to() -> None:
    with pytest.raises(AssertionError, match=r"Unbans.* must not allow banned tokens"):
        check_processor(Unbans())
    check_processor(Unbans(), unbans=True, max_examples=20)


def test_a_processor_that_makes_nan_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"MakesNaN.* must not make NaN"):
        check_processor(MakesNaN())


def test_a_processor_that_changes_the_shape_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"ChangesTheShape.* must keep the shape of the scores"):
        check_processor(ChangesTheShape())


def test_a_processor_that_declares_argmax_invariance_and_changes_it_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"DeclaresArgmaxInvariance.* must keep the argmax"):
        check_processor(DeclaresArgmaxInvariance())


@pytest.mark.parametrize("broken", [ReadsTheDevice(), HasAShapeThatDependsOnTheData()])
def test_a_processor_that_reads_the_device_is_caught(broken: dk.LogitsProcessor) -> None:
    with pytest.raises(AssertionError, match=rf"a step of .*{type(broken).__name__}.* reads the device"):
        check_processor(broken, max_examples=5)
