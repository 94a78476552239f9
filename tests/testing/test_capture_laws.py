import pytest
import torch
from torch import Tensor

import decodekit as dk
from decodekit.testing import check_captures

VOCAB = 9


class Counts(dk.LogitsProcessor):
    """Right: counts the steps."""

    def init(self, history: dk.History) -> Tensor:
        return torch.zeros_like(history.position)

    def apply(self, history: dk.History, scores: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        del history
        return scores - memory, memory + 1


class CountsInHalves(Counts):
    """Broken: its memory changes its type in the first step."""

    def apply(self, history: dk.History, scores: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        del history
        return scores, memory + 0.5


class KeepsACopy(Counts):
    """Broken: its memory grows with every step."""

    def init(self, history: dk.History) -> Tensor:
        return history.position.view(1).expand(len(history.tokens))[:, None]

    def apply(self, history: dk.History, scores: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        del history
        return scores, torch.cat([memory, memory[:, :1]], 1)


class ReadsTheDevice(Counts):
    """Broken: reads a number from the device."""

    def apply(self, history: dk.History, scores: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        del history
        return (scores, memory) if memory.item() else (scores / 2, memory)


class PicksWithAMask(Counts):
    """Broken: the number of columns it reads depends on the data."""

    def apply(self, history: dk.History, scores: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        return scores + 0.0 * history.tokens[history.valid].sum(), memory


class BranchesOnTheHost(Counts):
    """Broken: a comparison decides on the host."""

    def apply(self, history: dk.History, scores: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        if history.position > 3:
            scores = scores / 2
        return scores, memory


@pytest.mark.parametrize("broken", [CountsInHalves(), KeepsACopy()])
def test_a_step_that_changes_the_form_of_a_memory_cannot_be_captured(broken: dk.LogitsProcessor) -> None:
    with pytest.raises(AssertionError, match="shapes must not change in a step"):
        check_captures(processor=broken, vocab=VOCAB)


@pytest.mark.parametrize("broken", [ReadsTheDevice(), PicksWithAMask(), BranchesOnTheHost()])
def test_a_step_that_reads_the_device_cannot_be_captured(broken: dk.LogitsProcessor) -> None:
    with pytest.raises(AssertionError, match=rf"a step of .*{type(broken).__name__}.* reads the device"):
        check_captures(processor=broken, vocab=VOCAB)


@pytest.mark.parametrize(
    "decoder", [None, dk.Greedy(), dk.BeamSearch(3), dk.Sample(2, seeds=[1, 2, 3])], ids=repr
)
def test_a_step_of_parts_of_the_library_can_be_captured(decoder: dk.Decoder | None) -> None:
    processors = [dk.RepetitionPenalty(1.2), dk.NoRepeatNGram(2), dk.MinNewTokens(3, end_ids=2), Counts()]
    check_captures(decoder, processors, vocab=VOCAB)
    check_captures(decoder, Counts(), vocab=VOCAB)
