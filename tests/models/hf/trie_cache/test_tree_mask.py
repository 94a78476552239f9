"""Tree masks: solved by hand, and against lists of ancestors."""

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decodekit.models.hf.trie_cache.tree_mask import TreeMask

UNSEEN = torch.finfo(torch.float32).min


def seen(tree: TreeMask) -> list[list[list[int]]]:
    """The slots that every beam of every prompt sees."""
    return [
        [[slot for slot, bias in enumerate(row) if bias == 0.0] for row in prompt]
        for prompt in tree.bias[:, 0].tolist()
    ]


def test_beams_see_their_prompt_their_ancestors_and_themselves() -> None:
    tree = TreeMask(torch.tensor([[False, True, True]]), 2, torch.float32)
    tree.append()
    assert seen(tree) == [[[1, 2, 3], [1, 2, 4]]]
    tree.reorder(torch.tensor([1, 1]))
    tree.append()
    assert seen(tree) == [[[1, 2, 4, 5], [1, 2, 4, 6]]]
    assert set(tree.bias.unique().tolist()) == {0.0, UNSEEN}
    assert tree.slot_positions.tolist() == [[0, 0, 1, 2, 2, 3, 3, *[0] * (tree.room - 7)]]
    assert tree.positions.queries.tolist() == [[3, 3]]
    assert tree.max_positions == [3]
    # As many columns as in a row cache: one of padding, two of the prompt and two generated ones.
    assert tree.paths()[:, 1:].tolist() == [[1, 2, 4, 5], [1, 2, 4, 6]]
    assert tree.paths().shape == (2, 5)


def test_dead_slots_are_removed_once_they_are_more_than_half() -> None:
    tree = TreeMask(torch.ones(1, 2, dtype=torch.bool), 4, torch.float32)
    for step in range(16):
        if step:
            tree.reorder(torch.zeros(4, dtype=torch.long))
        assert tree.slots_to_keep() is None
        tree.append()
    tree.reorder(torch.zeros(4, dtype=torch.long))
    slots = tree.slots_to_keep()
    assert slots is not None
    assert slots.tolist() == [[0, 1, *range(2, 66, 4)]]
    tree.compact(slots)
    assert seen(tree) == [[list(range(18))] * 4]
    assert tree.slot_positions.tolist() == [[0, 1, *range(2, 18), *[0] * (tree.room - 18)]]


def test_no_slot_is_removed_while_every_branch_lives() -> None:
    tree = TreeMask(torch.ones(1, 2, dtype=torch.bool), 4, torch.float32)
    for _ in range(40):
        assert tree.slots_to_keep() is None
        tree.append()


def test_the_trees_of_two_runs_are_merged() -> None:
    one = TreeMask(torch.tensor([[False, True, True, True], [False, False, True, True]]), 2, torch.float32)
    one.append()
    one.select(torch.tensor([1]))
    other = TreeMask(torch.ones(1, 1, dtype=torch.bool), 2, torch.float32)
    # Two columns of padding go, which no beam sees. The shorter prompt gets one, and two unseen slots.
    assert one.merge(other) == (-2, 1)
    assert (one.batch, one.length, one.slots) == (2, 2, 4)
    assert seen(one) == [[[0, 1, 2], [0, 1, 3]], [[1], [1]]]
    assert one.slot_positions[:, :4].tolist() == [[0, 1, 2, 2], [0, 0, 0, 0]]
    assert not one.slot_positions[:, 4:].any()
    assert one.new_slots.tolist() == [2, 3]
    assert one.positions.queries.tolist() == [[2, 2], [0, 0]]
    assert (one.max_positions, one.columns, one.shared_columns) == ([0, 2], 3, 2)
    assert one.column_mask.tolist() == [[True, True, True], [False, False, True]]
    one.reorder(torch.tensor([1, 1, 3, 2]))
    one.append()
    assert seen(one) == [[[0, 1, 3, 4], [0, 1, 3, 5]], [[1, 4], [1, 5]]]
    assert one.paths()[:2].tolist() == [[0, 1, 3, 4], [0, 1, 3, 5]]
    assert one.paths()[2:, 2:].tolist() == [[1, 4], [1, 5]]
    first = one.unseen_prefix(torch.tensor([1]))
    one.select(torch.tensor([1]), first)
    assert (first, one.length, one.slots, one.columns) == (1, 1, 5, 2)
    assert seen(one) == [[[0, 3], [0, 4]]]
    assert one.paths().tolist() == [[0, 3], [0, 4]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), beams=st.integers(1, 5), batch=st.integers(1, 3), steps=st.integers(1, 60))
def test_the_mask_is_that_of_the_ancestors_through_any_moves(
    seed: int, beams: int, batch: int, steps: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - a seed, no secret
    length = chance.randint(1, 4)
    padding = [chance.randrange(length) for _ in range(batch)]
    mask = torch.tensor([[column >= pad for column in range(length)] for pad in padding])
    tree = TreeMask(mask, beams, torch.float32)
    # Every slot is named by (step, beam); the prompt's by (-1, column).
    names = [[(-1, column) for column in range(length)] for _ in range(batch)]
    ancestors = [[[(-1, c) for c in range(padding[b], length)] for _ in range(beams)] for b in range(batch)]
    for step in range(steps):
        if chance.random() < 0.8:
            width = chance.randint(1, beams)
            parents = [[chance.randrange(width) for _ in range(beams)] for _ in range(batch)]
            tree.reorder(torch.tensor([b * beams + p for b in range(batch) for p in parents[b]]))
            ancestors = [[list(ancestors[b][p]) for p in parents[b]] for b in range(batch)]
        if (kept := tree.slots_to_keep()) is not None:
            tree.compact(kept)
            names = [[names[b][slot] for slot in kept[b].tolist()] for b in range(batch)]
        tree.append()
        for b in range(batch):
            names[b] += [(step, beam) for beam in range(beams)]
            for beam in range(beams):
                ancestors[b][beam].append((step, beam))
    expected = [[sorted(path) for path in prompt] for prompt in ancestors]
    actual = [
        [sorted(names[b][slot] for slot in path) for path in prompt] for b, prompt in enumerate(seen(tree))
    ]
    assert actual == expected
    paths = tree.paths().tolist()
    for row, path in enumerate(paths):
        b, beam = divmod(row, beams)
        assert len(path) == length + steps
        assert [names[b][slot] for slot in path[padding[b] :]] == ancestors[b][beam]
    assert tree.slots <= length + beams * steps
