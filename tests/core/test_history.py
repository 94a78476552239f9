import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_leaves

import decodekit as dk
from decodekit.core.history import RowOwners, Source
from decodekit.core.pytrees import reorder_memory
from decodekit.testing.strategies import cases

LAWS = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def written(history: dk.History) -> list[list[int]]:
    """Every row's text."""
    return [tokens[valid].tolist() for tokens, valid in zip(history.tokens, history.valid, strict=True)]


def two_rows() -> dk.History:
    """Two texts, one of them padded; 8 and 9 are junk."""
    return dk.History(
        torch.tensor([[5, 6, 9, 9], [8, 7, 9, 9]]),
        torch.tensor([[True, True, False, False], [False, True, False, False]]),
        torch.tensor(2),
    )


def test_append_writes_one_token_on_every_row_and_moves_on() -> None:
    after = two_rows().append(torch.tensor([1, 2]))
    assert after.tokens.tolist() == [[5, 6, 1, 9], [8, 7, 2, 9]]
    assert after.valid.tolist() == [[True, True, True, False], [False, True, True, False]]
    assert after.position.item() == 3


def test_append_leaves_the_history_before_it_as_it_was() -> None:
    before = two_rows()
    before.append(torch.tensor([1, 2]))
    assert written(before) == [[5, 6], [7]]
    assert before.position.item() == 2


def test_append_past_the_capacity_writes_nothing() -> None:
    full = two_rows().append(torch.tensor([1, 2])).append(torch.tensor([3, 4]))
    over = full.append(torch.tensor([0, 0]))
    assert full.tokens.tolist() == over.tokens.tolist()
    assert full.valid.tolist() == over.valid.tolist()
    assert over.position.item() == 5


def test_take_gives_the_rows_that_are_asked_for() -> None:
    taken = two_rows().take(torch.tensor([1, 0, 1]))
    assert written(taken) == [[7], [5, 6], [7]]
    assert taken.position.item() == 2


def test_take_may_repeat_a_row_and_the_copies_go_their_own_ways() -> None:
    beams = two_rows().take(torch.tensor([0, 0])).append(torch.tensor([3, 4]))
    assert written(beams) == [[5, 6, 3], [5, 6, 4]]


def test_a_history_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        two_rows().position = torch.tensor(0)  # type: ignore[misc]


def test_a_history_works_without_contents_so_a_step_can_be_captured() -> None:
    with torch.device("meta"):
        history = dk.History(
            torch.zeros(2, 5, dtype=torch.long),
            torch.zeros(2, 5, dtype=torch.bool),
            torch.zeros((), dtype=torch.long),
        )
        after = history.take(torch.zeros(2, dtype=torch.long)).append(torch.zeros(2, dtype=torch.long))
    for before, now in zip(tree_leaves(history), tree_leaves(after), strict=True):
        assert before.shape == now.shape
        assert before.dtype == now.dtype


@LAWS
@given(cases(9), st.lists(st.integers(0, 8), max_size=4))
def test_appending_extends_every_text_at_its_end(case: tuple[dk.History, Tensor], tokens: list[int]) -> None:
    history, _ = case
    room = history.tokens.shape[1] - int(history.position)
    expected = [text + tokens[:room] for text in written(history)]
    for token in tokens:
        history = history.append(torch.full((len(history.tokens),), token))
    assert expected == written(history)


@LAWS
@given(cases(9), st.data())
def test_taking_and_appending_commute_when_the_tokens_follow_their_rows(
    case: tuple[dk.History, Tensor], data: st.DataObject
) -> None:
    history, _ = case
    count = len(history.tokens)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6)))
    tokens = torch.arange(count)
    expected = history.append(tokens).take(rows)
    assert written(expected) == written(history.take(rows).append(tokens[rows]))


def beams_of_two_prompts() -> dk.History:
    """Two beams of each of two prompts."""
    tokens = torch.tensor([[5, 1, 9], [5, 2, 9], [6, 3, 9], [6, 4, 9]])
    return dk.History(
        tokens,
        torch.tensor([[True, True, False]] * 4),
        torch.tensor(2),
        RowOwners.of(4, 2, tokens.device),
    )


def test_last_is_the_newest_token_of_every_row() -> None:
    history = beams_of_two_prompts()
    assert history.last().tolist() == [1, 2, 3, 4]
    assert history.append(torch.tensor([7, 7, 8, 8])).last().tolist() == [7, 7, 8, 8]


def test_past_the_capacity_last_may_say_anything_and_does_not_fail() -> None:
    history = beams_of_two_prompts()
    for _ in range(4):
        history = history.append(torch.tensor([7, 7, 8, 8]))
    assert history.last().shape == (4,)


def test_rows_know_their_prompts_and_take_them_along() -> None:
    taken = beams_of_two_prompts().take(torch.tensor([3, 0, 2]))
    assert taken.owners.prompts.tolist() == [1, 0, 1]
    assert taken.append(torch.tensor([1, 2, 3])).owners is taken.owners


def test_what_was_given_for_each_prompt_is_spread_over_its_rows() -> None:
    history = beams_of_two_prompts()
    assert history.to_rows(torch.tensor([0.5, 0.7])).tolist() == pytest.approx([0.5, 0.5, 0.7, 0.7])
    assert history.to_rows(torch.tensor([[1, 2], [3, 4]])).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert history.take(torch.tensor([2, 1])).to_rows(torch.tensor([8, 9])).tolist() == [9, 8]


def test_without_owners_every_row_is_a_prompt() -> None:
    assert two_rows().to_rows(torch.tensor([8, 9])).tolist() == [8, 9]


def test_a_source_is_taken_by_prompt() -> None:
    source = Source(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[True, True], [False, True]]))
    taken = source.take(torch.tensor([1, 1, 0]))
    assert taken.tokens.tolist() == [[3, 4], [3, 4], [1, 2]]
    assert taken.valid.tolist() == [[False, True], [False, True], [True, True]]
    assert taken.to(torch.device("cpu")).tokens.tolist() == taken.tokens.tolist()


def test_a_part_knows_whose_its_rows_are() -> None:
    whole = dk.Prompt.from_ids([[5], [6, 7], [8]]).history(4, 2)
    part = whole.part(torch.tensor([3, 4]))
    assert written(part) == [[6, 7], [8]]
    assert part.batch == whole.batch == 3
    assert part.rows_per_prompt == 1
    assert part.to_rows(torch.tensor([10, 20, 30])).tolist() == [20, 30]
    assert part.owners.slots.tolist() == [1, 0]
    assert whole.owners.slots.tolist() == [0, 1, 0, 1, 0, 1]
    again = part.part(torch.tensor([1])).append(torch.tensor([9]))
    assert (written(again), again.batch, again.owners.slots.tolist()) == ([[8, 9]], 3, [0])
    assert again.to_rows(torch.tensor([10, 20, 30])).tolist() == [30]
    bare = two_rows().part(torch.tensor([1]))
    assert bare.batch == 2
    assert bare.to_rows(torch.tensor([10, 20])).tolist() == [20]


def test_a_history_is_a_pytree_whose_rows_move_together_while_sources_stay() -> None:
    source = Source(torch.tensor([[1, 2], [3, 4]]), torch.ones(2, 2, dtype=torch.bool))
    history = dataclasses.replace(beams_of_two_prompts(), source=source)
    moved = reorder_memory(history, torch.tensor([1, 0, 3, 3]))
    assert written(moved) == [[5, 2], [5, 1], [6, 4], [6, 4]]
    assert moved.owners.slots.tolist() == [1, 0, 1, 1]
    assert moved.source is source
