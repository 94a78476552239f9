from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import decodekit as dk
from decodekit.testing import HashModel, check_captures, check_processor
from decodekit.testing.strategies import cases
from tests.processors.parity import LAWS

VOCAB = 9


class AtMostOnce(dk.LogitsProcessor):
    """Bans the last token of the prompt and every new one; remembers them instead of looking back."""

    def init(self, history: dk.History) -> Tensor:
        return torch.zeros(len(history.tokens), VOCAB, dtype=torch.bool, device=history.tokens.device)

    def apply(self, history: dk.History, scores: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        last = history.tokens.index_select(1, (history.position - 1).view(1))
        memory = memory.scatter(1, last, True)
        return scores.masked_fill(memory, -torch.inf), memory


class Countdown(dk.LogitsProcessor):
    """Adds the number of the step to every score: its memory is one number for all rows."""

    def init(self, history: dk.History) -> Tensor:
        return torch.zeros_like(history.position)

    def apply(self, history: dk.History, scores: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        del history
        return scores + memory, memory + 1


class OnTheHost(dk.StatelessProcessor):
    """Reads the device, and says so."""

    capturable = False

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        return scores / 2 if history.position.item() > 0 else scores


POOL = [
    dk.Temperature(0.5),
    dk.TopK(4),
    dk.RepetitionPenalty(1.5),
    dk.NoRepeatNGram(2),
    dk.MinNewTokens(2, end_ids=0),
    AtMostOnce(),
    Countdown(),
]


def applied(processor: dk.LogitsProcessor, history: dk.History, scores: Tensor) -> tuple[Any, Any]:
    """Scores after two steps from the same history, and memory."""
    memory = processor.init(history)
    first, memory = processor.apply(history, scores, memory)
    second, memory = processor.apply(history, scores, memory)
    return first.tolist(), second.tolist()


@st.composite
def nested(draw: st.DrawFn, processors: Sequence[dk.LogitsProcessor]) -> dk.Chain:
    """The processors in order, in chains within chains, with empty ones between."""
    if len(processors) <= 1:
        empty = [dk.Chain()] if draw(st.booleans()) else []
        return dk.Chain(*empty, *processors)
    cut = draw(st.integers(1, len(processors) - 1))
    left, right = draw(nested(processors[:cut])), draw(nested(processors[cut:]))
    return draw(st.sampled_from([left | right, dk.Chain(left, dk.Chain(), right)]))


def test_chain_applies_from_left_to_right() -> None:
    history = dk.Prompt.from_ids([[0]]).history(2, 1)
    scores = torch.tensor([[4.0, 2.0, 1.0]])
    # 4 : 2 : 1 above zero becomes 2 : 2 : 1, of which the tied ones stay; the other way round 4 stays.
    penalty_first, top_first = dk.RepetitionPenalty(2.0) | dk.TopK(1), dk.TopK(1) | dk.RepetitionPenalty(2.0)
    assert penalty_first.apply(history, scores, penalty_first.init(history))[0].tolist() == [
        [2.0, 2.0, -torch.inf]
    ]
    assert top_first.apply(history, scores, top_first.init(history))[0].tolist() == [
        [2.0, -torch.inf, -torch.inf]
    ]


def test_empty_chain_is_the_identity() -> None:
    history = dk.Prompt.from_ids([[0]]).history(2, 1)
    scores = torch.tensor([[4.0, -torch.inf, 1.0]])
    out, memory = dk.Chain().apply(history, scores, dk.Chain().init(history))
    assert scores.tolist() == out.tolist()
    assert memory == ()


def test_or_is_a_chain_of_both_in_order() -> None:
    first, second = dk.TopK(3), dk.TopP(0.5)
    assert (first | second).processors == (first, second)


def test_chain_reads_as_it_is_written() -> None:
    assert repr(dk.Chain(dk.TopK(3), dk.Chain())) == "Chain(TopK(k=3, min_tokens_to_keep=1), Chain())"


@pytest.mark.parametrize("other", [None, 3, "TopK", dk.TopK, [dk.TopK(3)], torch.nn.Identity()])
def test_chain_refuses_what_is_no_processor(other: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=r"^Chain: every processor must be a decodekit.LogitsProcessor, got"):
        dk.Chain(dk.TopK(3), other)


@pytest.mark.parametrize("other", [None, 3, "TopK", dk.TopK])
def test_or_refuses_what_is_no_processor_on_either_side(other: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=r"^Chain: every processor must be a decodekit.LogitsProcessor, got"):
        dk.TopK(3) | other
    with pytest.raises(TypeError, match="unsupported operand"):
        other | dk.TopK(3)


def test_chain_keeps_every_memory_apart() -> None:
    history = dk.Prompt.from_ids([[3], [4]]).history(3, 1)
    chain = dk.Chain(Countdown(), dk.TopK(9), AtMostOnce())
    memory = chain.init(history)
    for _ in range(3):
        _, memory = chain.apply(history, torch.zeros(2, VOCAB), memory)
    count, nothing, said = memory
    assert count.item() == 3
    assert nothing == ()
    assert torch.where(said)[1].tolist() == [3, 4]


@pytest.mark.parametrize(
    "chain",
    [
        dk.Chain(),
        dk.Chain(AtMostOnce()),
        dk.Chain(dk.Temperature(0.7), dk.Chain(AtMostOnce(), dk.TopP(0.8))),
        dk.MinNewTokens(2, end_ids=0) | Countdown() | dk.NoRepeatNGram(2),
    ],
)
def test_chain_keeps_the_contract_of_processors(chain: dk.Chain) -> None:
    check_processor(chain, vocab=VOCAB, max_examples=20)


@LAWS
@given(cases(VOCAB), st.lists(st.sampled_from(POOL), max_size=5), st.data())
def test_chain_is_its_processors_one_after_the_other_however_nested(
    case: tuple[dk.History, Tensor], processors: list[dk.LogitsProcessor], data: st.DataObject
) -> None:
    history, scores = case
    memories = [processor.init(history) for processor in processors]
    expected = []
    for _ in range(2):
        out = scores
        for number, processor in enumerate(processors):
            out, memories[number] = processor.apply(history, out, memories[number])
        expected.append(out.tolist())
    assert tuple(expected) == applied(dk.Chain(*processors), history, scores)
    assert tuple(expected) == applied(data.draw(nested(processors)), history, scores)


@pytest.mark.parametrize("beams", [1, 2, 5])
@pytest.mark.parametrize(
    "remembers",
    [AtMostOnce(), dk.Chain(AtMostOnce()), dk.Chain(dk.Chain(), dk.Chain(dk.Temperature(1), AtMostOnce()))],
)
def test_memory_follows_its_beam_through_chains(beams: int, remembers: dk.LogitsProcessor) -> None:
    # After prompts of one token, what is remembered is the whole text, so nothing need be remembered.
    for seed in range(10):
        model, prompts = HashModel(VOCAB, seed, end_ids=(2,)), [[3], [5], [0]]
        decoder = dk.BeamSearch(beams, num_return=beams)
        expected = dk.decode(model, prompts, decoder, dk.NoRepeatNGram(1), max_new_tokens=6)
        out = dk.decode(model, prompts, decoder, remembers, max_new_tokens=6)
        assert expected.hypotheses() == out.hypotheses()
        assert expected.score.tolist() == out.score.tolist()


def test_chain_of_capturable_processors_captures() -> None:
    check_captures(dk.BeamSearch(2), dk.Chain(*POOL), vocab=VOCAB)


def test_chain_of_code_for_the_host_says_so() -> None:
    assert not dk.Chain(dk.TopK(3), OnTheHost()).capturable
    check_processor(dk.Chain(dk.TopK(3), OnTheHost()), max_examples=5)
