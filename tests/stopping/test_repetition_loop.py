import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import check_captures, check_decoder
from tests.stopping.scripted import Scripted


def stops_after(tokens: list[int], stop: dk.RepetitionLoop, prompt: list[int] | None = None) -> int | None:
    """After how many tokens a text is finished; None: never."""
    prompts = [[0] if prompt is None else prompt]
    out = dk.decode(Scripted([tokens], 10), prompts, dk.Greedy(), stop=stop, max_new_tokens=len(tokens))
    assert out.finish_reason[0][0] in {"loop", "length"}
    return int(out.lengths) if out.finish_reason == [["loop"]] else None


@pytest.mark.parametrize(
    ("tokens", "times", "longest", "expected"),
    [
        ([1, 2, 2, 2, 3], 3, 9, 4),
        ([1, 2, 2, 3, 2], 3, 9, None),
        ([1, 2, 2, 3, 2], 2, 9, 3),
        ([1, 2, 1, 2, 1, 2], 3, 9, 6),
        ([1, 2, 1, 2, 1, 2], 3, 1, None),  # the block is too long
        ([5, 1, 2, 3, 1, 2, 3, 4], 2, 3, 7),
        ([5, 1, 2, 3, 1, 2, 3, 4], 2, 2, None),
        ([1, 2, 1, 3, 1, 2, 1, 3], 2, 4, 8),
        ([1, 1], 3, 9, None),
        ([1, 1, 1], 3, 9, 3),
    ],
)
def test_a_loop_is_a_block_repeated_times_in_a_row(
    tokens: list[int], times: int, longest: int, expected: int | None
) -> None:
    assert stops_after(tokens, dk.RepetitionLoop(times, longest)) == expected


def test_the_prompt_does_not_count() -> None:
    assert stops_after([2, 2, 2, 1], dk.RepetitionLoop(3), prompt=[2, 2]) == 3
    assert stops_after([2, 1, 2, 1], dk.RepetitionLoop(3), prompt=[2, 1]) is None


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    tokens=st.lists(st.integers(0, 2), min_size=1, max_size=16),
    times=st.integers(2, 4),
    longest=st.integers(1, 6),
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=4),
)
def test_it_equals_a_search_for_the_block(
    tokens: list[int], times: int, longest: int, prompt: list[int]
) -> None:
    ends = (
        length
        for length in range(1, len(tokens) + 1)
        if any(
            tokens[length - period * times : length] == tokens[length - period : length] * times
            for period in range(1, longest + 1)
            if period * times <= length
        )
    )
    assert stops_after(tokens, dk.RepetitionLoop(times, longest), prompt) == next(ends, None)


def test_every_hypothesis_of_a_beam_search_is_read_by_itself() -> None:
    model = dk.testing.MarkovModel([[0.6, 0.4], [0.55, 0.45]])
    search = dk.BeamSearch(2, num_return=2, scorer=dk.LogProb())
    out = dk.decode(model, [[1]], search, stop=dk.RepetitionLoop(2, 1), max_new_tokens=4)
    # 0 0: .33 is finished, 1 0: .2475 and 0 1: .22 go on, 1 1: .2025 is not among the best two.
    assert out.hypotheses() == [[[0, 0], [1, 0, 0]]]
    assert out.finish_reason == [["loop", "loop"]]


@pytest.mark.slow
def test_it_keeps_the_laws() -> None:
    # Run past the end of the buffer too.
    for decoder in (dk.Greedy(), dk.BeamSearch(3)):
        check_decoder(decoder, stop=dk.RepetitionLoop(2, 3), max_examples=20)
    check_captures(dk.BeamSearch(3), stop=dk.RepetitionLoop())


def test_rows_padding_and_junk_do_not_count() -> None:
    stop = dk.RepetitionLoop(2, 4)
    tokens = torch.tensor([[7, 3, 1, 1, 9, 9], [3, 3, 1, 2, 2, 2]])
    valid = torch.ones_like(tokens, dtype=torch.bool)
    start = dk.History(tokens, valid, torch.tensor(2))
    memory = stop.init(start, dk.StoppingContext(dk.Vocabulary(), 0.0))
    rows, _ = stop.apply(dk.History(tokens, valid, torch.tensor(4)), torch.zeros(2), memory)
    assert rows.tolist() == [True, False]


@pytest.mark.parametrize("times", [1, 0, -1, 2.0, True, None])
def test_times_must_be_an_integer_of_at_least_two(times: int) -> None:
    with pytest.raises(ValueError, match="RepetitionLoop: times must be an integer of at least 2"):
        dk.RepetitionLoop(times)


@pytest.mark.parametrize("longest", [0, -1, 2.0, True, None])
def test_longest_must_be_an_integer_of_at_least_one(longest: int) -> None:
    with pytest.raises(ValueError, match="RepetitionLoop: longest must be an integer of at least 1"):
        dk.RepetitionLoop(3, longest)
