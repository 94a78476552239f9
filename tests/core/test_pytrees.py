from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decodekit.core.pytrees import pick_memory, reorder_memory


def memory_of(rows: list[int]) -> dict[str, Any]:
    """A nest whose tensors say which row they belong to; what has no rows stays as it is."""
    number = torch.tensor(rows)
    return {
        "one": number,
        "deep": [(number[:, None] * torch.tensor([1, 10]), torch.tensor(7)), "text", 5, None],
        "three": number[:, None, None].expand(-1, 2, 3),
        "none": (),
    }


def rows_of(memory: dict[str, Any]) -> list[int]:
    """Which rows a memory belongs to; every part of it must agree."""
    rows: list[int] = memory["one"].tolist()
    [(pairs, whole), text, number, nothing] = memory["deep"]
    assert pairs.tolist() == [[row, 10 * row] for row in rows]
    assert memory["three"].tolist() == [[[row] * 3] * 2 for row in rows]
    assert (whole.item(), text, number, nothing, memory["none"]) == (7, "text", 5, None, ())
    return rows


def test_reordered_every_tensor_with_rows_follows_its_row() -> None:
    memory = memory_of([3, 4, 5])
    assert rows_of(reorder_memory(memory, torch.tensor([2, 0, 2, 1]))) == [5, 3, 5, 4]
    assert rows_of(memory) == [3, 4, 5]


def test_of_one_memory_rows_are_picked_by_prompt() -> None:
    # Two prompts of two beams each: rows 0 and 1, rows 2 and 3.
    picked = pick_memory([memory_of([0, 1, 2, 3])], torch.tensor([[1, 1], [0, 1]]))
    assert rows_of(picked) == [1, 1, 2, 3]


def test_of_several_memories_rows_are_counted_through_all_of_them() -> None:
    memories = [memory_of([0, 1, 10, 11]), memory_of([2, 3, 12, 13]), memory_of([4, 5, 14, 15])]
    picked = pick_memory(memories, torch.tensor([[5, 0], [2, 1]]))
    assert rows_of(picked) == [5, 0, 12, 11]


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(batch=st.integers(1, 3), beams=st.integers(1, 3), number=st.integers(1, 3), data=st.data())
def test_picking_is_indexing_each_prompts_candidates(
    batch: int, beams: int, number: int, data: st.DataObject
) -> None:
    candidates = [[100 * prompt + place for place in range(number * beams)] for prompt in range(batch)]
    memories = [
        memory_of([row for prompt in candidates for row in prompt[first : first + beams]])
        for first in range(0, number * beams, beams)
    ]
    places = st.lists(st.integers(0, number * beams - 1), min_size=beams, max_size=beams)
    chosen = data.draw(st.lists(places, min_size=batch, max_size=batch))
    expected = [candidates[prompt][place] for prompt, row in enumerate(chosen) for place in row]
    assert expected == rows_of(pick_memory(memories, torch.tensor(chosen)))


@pytest.mark.parametrize("memory", [(), None, 5, "text", [], {}])
def test_a_memory_without_tensors_stays_as_it_is(memory: Any) -> None:  # noqa: ANN401
    assert memory == reorder_memory(memory, torch.tensor([1, 0]))
    assert memory == pick_memory([memory, memory], torch.tensor([[3, 0]]))
