from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel, check_captures, check_processor
from tests.processors.alone import FEW, Values, assert_each_has_its_own, batches

BANNED = -torch.inf
# Emits 0 by itself, for ever.
GOES_ON = MarkovModel([[0.6, 0.2, 0.2], [0.6, 0.2, 0.2], [0.6, 0.2, 0.2]])


def history_of(text: list[list[int]], room: int = 4) -> dk.History:
    """The text as a prompt, with room to go on."""
    return dk.Prompt.from_ids(text).history(len(text[0]) + room, 1)


def test_forced_prefix_allows_its_tokens_one_after_the_other_and_then_changes_nothing() -> None:
    processor, history = dk.ForcedPrefix([1, 0]), history_of([[2, 2]])
    memory, scores, out = processor.init(history), torch.tensor([[1.0, BANNED, 2.0]]), []
    for token in (1, 0, 2):
        processed, memory = processor.apply(history, scores, memory)
        out.append(processed[0].tolist())
        history = history.append(torch.tensor([token]))
    assert out == [[BANNED, 0.0, BANNED], [0.0, BANNED, BANNED], [1.0, BANNED, 2.0]]


def test_forced_prefix_gives_each_prompt_its_own_of_its_own_length() -> None:
    prefix = dk.ForcedPrefix([[2, 1, 2], [], [1]])
    out = dk.decode(GOES_ON, [[0], [0, 0], [1, 1, 1]], dk.Greedy(), prefix, max_new_tokens=4)
    assert out.hypotheses() == [[[2, 1, 2, 0]], [[0, 0, 0, 0]], [[1, 0, 0, 0]]]


def test_forced_prefix_adds_nothing_to_a_beam_and_the_models_log_probs_are_reported() -> None:
    search = dk.BeamSearch(2, scorer=dk.LogProb(), num_return=2)
    out = dk.decode(GOES_ON, [[0]], search, dk.ForcedPrefix([2, 1]), max_new_tokens=3)
    assert out.hypotheses()[0][0] == [2, 1, 0]
    torch.testing.assert_close(out.score[0, 0].exp(), torch.tensor(0.6))
    torch.testing.assert_close(out.token_log_probs[0, 0].exp(), torch.tensor([0.2, 0.2, 0.6]))


@pytest.mark.parametrize(
    "decoder",
    [
        dk.Greedy(),
        dk.Sample(2, seeds=[1, 2]),
        dk.BeamSearch(3, num_return=3),
        dk.BeamSearch(3, expansion=dk.PerNodeExpansion(1)),
        dk.ConstrainedBeamSearch(3, [dk.Phrase([4])], num_return=2),
        dk.ArithmeticSample(3, seeds=[1, 2]),
        dk.UniqueSample(2, seeds=[1, 2]),
        dk.Speculative(dk.DraftModel(HashModel(5, 3)), tokens=3),
        dk.Speculative(dk.PromptLookup(1), sample=True, seeds=[3, 4]),
    ],
    ids=lambda decoder: type(decoder).__name__,
)
def test_forced_prefix_begins_every_text_under_every_decoder(decoder: Any) -> None:  # noqa: ANN401
    prefixes = [[3, 3, 1], [2]]
    out = dk.decode(
        HashModel(5, 7, end_ids=(0,)), [[1], [2, 4]], decoder, dk.ForcedPrefix(prefixes), max_new_tokens=6
    )
    for texts, prefix in zip(out.hypotheses(), prefixes, strict=True):
        assert texts
        assert all(text[: len(prefix)] == prefix for text in texts)


def test_forced_prefix_is_emitted_as_far_as_there_is_room_and_ends_with_an_end_id() -> None:
    model = HashModel(4, end_ids=(3,))
    out = dk.decode(model, [[0]], dk.Greedy(), dk.ForcedPrefix([1, 2, 1]), max_new_tokens=2)
    assert out.hypotheses() == [[[1, 2]]]
    out = dk.decode(model, [[0]], dk.Greedy(), dk.ForcedPrefix([1, 3, 1]), max_new_tokens=5)
    assert out.hypotheses() == [[[1, 3]]]


@pytest.mark.parametrize("given_as", [[3, 4], (3, 4), np.array([3, 4]), torch.tensor([3, 4])])
def test_forced_prefix_takes_ids_of_any_kind(given_as: Any) -> None:  # noqa: ANN401
    assert dk.ForcedPrefix(given_as) == dk.ForcedPrefix([3, 4])
    assert dk.ForcedPrefix([given_as, [5]]).prefixes == ((3, 4), (5,))


@pytest.mark.parametrize("prefixes", [[-1], [1.0], ["a"], [[1], [-2]], [[True]], [None]])
def test_forced_prefix_refuses_what_are_not_ids(prefixes: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^ForcedPrefix: token ids must be integers of at least 0, got"):
        dk.ForcedPrefix(prefixes)


@pytest.mark.parametrize("prefixes", ["ab", 3, None])
def test_forced_prefix_refuses_what_is_no_list(prefixes: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^ForcedPrefix: prefixes must be ids, or ids for each prompt, got"):
        dk.ForcedPrefix(prefixes)


def test_forced_prefix_refuses_an_id_outside_the_vocabulary_when_applied() -> None:
    processor, history = dk.ForcedPrefix([1, 4]), history_of([[1]])
    with pytest.raises(
        ValueError, match=r"^ForcedPrefix: token ids must be below the vocabulary size 4, got 4"
    ):
        processor.apply(history, torch.zeros(1, 4), processor.init(history))


def test_forced_prefix_refuses_prefixes_that_are_not_one_per_prompt() -> None:
    message = r"^ForcedPrefix: there must be one prefix, or one for each prompt, got 2 for 1 prompts"
    with pytest.raises(dk.DecodekitError, match=message):
        dk.ForcedPrefix([[1], [2]]).init(history_of([[1]]))


@pytest.mark.parametrize("prefix", [[], [3], [3, 0, 4, 4, 4, 4, 4, 4]])
def test_forced_prefix_keeps_the_contract_of_processors(prefix: list[int]) -> None:
    check_processor(dk.ForcedPrefix(prefix), unbans=True, max_examples=20)


def test_forced_prefix_per_prompt_keeps_the_contract_of_processors() -> None:
    check_processor(
        lambda numbers: dk.ForcedPrefix([[n % 7] * (n % 4) for n in numbers]), unbans=True, max_examples=20
    )


def test_forced_prefix_is_captured() -> None:
    check_captures(dk.BeamSearch(4), dk.ForcedPrefix([[3, 4], [], [5]]))


@FEW
@given(batches(st.lists(st.integers(0, 6), max_size=5)), st.integers(0, 2**31))
def test_forced_prefix_of_every_prompt_is_what_it_is_alone(
    case: tuple[list[list[int]], Values], seed: int
) -> None:
    batch, values = case

    def make(prefixes: Any) -> dk.LogitsProcessor:  # noqa: ANN401 - those of all prompts, or the one of one
        return dk.ForcedPrefix(prefixes)

    assert_each_has_its_own(make, batch, values, seed)
