from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.parity import LAWS

VOCAB = 6


def penalties(
    processor: dk.DRY, batch: list[list[int]], new: list[list[int]] | None = None, vocab: int = VOCAB
) -> list[list[float]]:
    """The penalty of every token after the prompts `batch` and the tokens `new`."""
    more = new or [[] for _ in batch]
    prompt = dk.Prompt.from_ids(batch)
    history = prompt.history(prompt.tokens.shape[1] + len(more[0]) + 2, 1)
    memory = processor.init(history)
    for tokens in zip(*more, strict=True):
        history = history.append(torch.tensor(tokens))
    out, _ = processor.apply(history, torch.zeros(len(batch), vocab), memory)
    return (0 - out).tolist()


def slow(
    text: list[int],
    multiplier: float,
    base: float,
    allowed_length: int,
    breakers: set[int],
    max_match: int,
) -> list[float]:
    """The penalty of every token by the definition, comparing whole slices."""
    out = []
    for token in range(VOCAB):
        longest = 0
        for n in range(1, min(max_match, len(text)) + 1):
            suffix = text[len(text) - n :]
            there = any(text[start : start + n + 1] == [*suffix, token] for start in range(len(text) - n))
            if there and not breakers & {*suffix, token}:
                longest = n
        out.append(multiplier * base ** (longest - allowed_length) if longest >= allowed_length else 0.0)
    return out


def test_dry_penalises_the_token_that_followed_the_last_tokens_before() -> None:
    # 1 2 was followed by 3, and only 2 by 4: a repetition of two tokens, and of one.
    assert penalties(dk.DRY(8.0, 2.0), [[0, 2, 4, 1, 2, 3, 1, 2]]) == [[0, 0, 0, 8, 0, 0]]
    assert penalties(dk.DRY(8.0, 2.0, 1), [[0, 2, 4, 1, 2, 3, 1, 2]]) == [[0, 0, 0, 16, 8, 0]]


def test_dry_grows_by_the_base_with_every_token_that_is_repeated() -> None:
    text = [5, 0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert penalties(dk.DRY(1.0, 2.0, 2), [text])[0][4] == 4.0
    assert penalties(dk.DRY(1.0, 2.0, 4), [text])[0][4] == 1.0
    assert penalties(dk.DRY(1.0, 2.0, 5), [text])[0][4] == 0.0
    assert penalties(dk.DRY(0.5, 3.0, 1), [text])[0][4] == 13.5


def test_dry_takes_the_longest_of_several_repetitions() -> None:
    # 1 is followed by 2 three times, once after 0 and once after 3 0.
    assert penalties(dk.DRY(1.0, 2.0, 1), [[3, 0, 1, 2, 0, 1, 2, 1, 2, 3, 0, 1]])[0][2] == 4.0


def test_dry_sees_repetitions_that_overlap() -> None:
    assert penalties(dk.DRY(1.0, 2.0, 1), [[4, 4, 4, 4]])[0][4] == 4.0


def test_dry_crosses_no_breaker_and_penalises_none() -> None:
    text = [0, 1, 2, 3, 0, 1, 2]
    assert penalties(dk.DRY(1.0, 2.0, 1), [text])[0][3] == 4.0
    assert penalties(dk.DRY(1.0, 2.0, 1, breakers=[0, 9]), [text])[0][3] == 2.0
    assert penalties(dk.DRY(1.0, 2.0, 1, breakers=1), [text])[0][3] == 1.0
    assert penalties(dk.DRY(1.0, 2.0, 1, breakers=2), [text]) == [[0] * VOCAB]
    assert penalties(dk.DRY(1.0, 2.0, 1, breakers=[3]), [text]) == [[0] * VOCAB]


def test_dry_looks_at_the_last_tokens_of_the_window_only() -> None:
    text = [0, 1, 2, 3, 0, 1, 2]
    assert [penalties(dk.DRY(1.0, 2.0, 1, window=window), [text])[0][3] for window in (7, 6, 5, 4)] == [
        4.0,
        2.0,
        1.0,
        0.0,
    ]


def test_dry_counts_a_repetition_up_to_max_match() -> None:
    text = [0, 1, 2, 3, 0, 1, 2]
    assert [penalties(dk.DRY(1.0, 2.0, 1, max_match=most), [text])[0][3] for most in (1, 2, 3, 99)] == [
        1,
        2,
        4,
        4,
    ]


def test_dry_can_leave_the_prompt_out() -> None:
    prompt, new = [[0, 1, 2, 3]], [[0, 1, 2]]
    assert penalties(dk.DRY(1.0, 2.0), prompt, new)[0][3] == 2.0
    assert penalties(dk.DRY(1.0, 2.0, include_prompt=False), prompt, new) == [[0] * VOCAB]
    # The last two tokens occur in the prompt: a repetition does not reach into it.
    assert penalties(dk.DRY(1.0, 2.0, 1, include_prompt=False), [[0, 1]], [[2, 3, 0, 1, 2]])[0][3] == 1.0
    assert penalties(dk.DRY(1.0, 2.0, 1), [[0, 1]], [[2, 3, 0, 1, 2]])[0][3] == 4.0


def test_dry_takes_a_number_per_prompt() -> None:
    text = [0, 1, 2, 3, 0, 1, 2]
    each = dk.DRY([1.0, 0.5], [2.0, 3.0], [1, 2], window=[9, 7])
    assert [row[3] for row in penalties(each, [text, text])] == [4.0, 1.5]


def test_dry_never_makes_nan() -> None:
    processor = dk.DRY(1e38, 1e38, 1)
    history = dk.Prompt.from_ids([[0, 1, 0, 1, 0, 1, 0]]).history(9, 1)
    scores = torch.tensor([[0.0, torch.inf, -torch.inf, -1e38]])
    out, _ = processor.apply(history, scores, processor.init(history))
    assert out.tolist() == scores.tolist()
    banned, _ = processor.apply(history, torch.tensor([[0.0, -torch.inf]]), processor.init(history))
    assert banned.tolist() == [[0.0, -torch.inf]]


def test_dry_of_multiplier_zero_changes_nothing_however_large_the_base() -> None:
    assert penalties(dk.DRY(0.0, 1e38, 1), [[0, 1] * 6]) == [[0.0] * VOCAB]


def test_dry_ignores_ids_outside_the_vocabulary() -> None:
    assert penalties(dk.DRY(1.0, 2.0, 1), [[0, 9, 0, 3, 0]]) == [[0, 0, 0, 1, 0, 0]]


def test_dry_of_a_buffer_of_one_column_changes_nothing() -> None:
    history, scores = dk.Prompt.from_ids([[1]]).history(1, 1), torch.tensor([[1.0, 2.0]])
    assert dk.DRY(1.0).apply(history, scores, dk.DRY(1.0).init(history))[0].tolist() == scores.tolist()


def test_dry_ends_a_loop_of_greedy_search() -> None:
    model = dk.testing.MarkovModel([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.4, 0.3, 0.3]])
    plain = dk.decode(model, [[0]], dk.Greedy(), max_new_tokens=12)
    assert plain.hypotheses() == [[[1, 0] * 6]]
    out = dk.decode(model, [[0]], dk.Greedy(), dk.DRY(0.8), max_new_tokens=12)
    assert out.hypotheses()[0][0][:6] != [1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"multiplier": -0.1}, "multiplier must be a finite number of at least 0, got -0.1"),
        ({"multiplier": float("inf")}, "multiplier must be a finite number of at least 0, got inf"),
        ({"multiplier": float("nan")}, "multiplier must be"),
        ({"multiplier": "1"}, "multiplier must be"),
        ({"multiplier": [1.0, -1.0]}, "multiplier must be"),
        ({"base": 0.9}, "base must be a finite number of at least 1, got 0.9"),
        ({"base": float("inf")}, "base must be"),
        ({"allowed_length": 0}, "allowed_length must be an integer of at least 1, got 0"),
        ({"allowed_length": 1.5}, "allowed_length must be"),
        ({"breakers": [-1]}, "token ids must be integers of at least 0, got -1"),
        ({"window": 0}, "window must be None or an integer of at least 1, got 0"),
        ({"window": True}, "window must be"),
        ({"max_match": 0}, "max_match must be an integer of at least 1, got 0"),
        ({"max_match": None}, "max_match must be"),
        ({"include_prompt": 1}, "include_prompt must be True or False, got 1"),
    ],
)
def test_dry_refuses_what_is_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^DRY: {message}"):
        dk.DRY(**{"multiplier": 1.0, **arguments})


def test_dry_refuses_another_number_of_parameters_than_prompts() -> None:
    with pytest.raises(dk.DecodekitError, match=r"DRY: base must be one number, or one for each prompt"):
        penalties(dk.DRY(1.0, [2.0, 2.0]), [[0]])


@pytest.mark.parametrize(
    "processor",
    [
        dk.DRY(1.5, 2, 1),
        dk.DRY(0.8, breakers=(0, 3)),
        dk.DRY(1.0, 1.5, 1, window=4, max_match=2),
        dk.DRY(1.0, 1.5, 1, include_prompt=False),
        lambda prompts: dk.DRY(
            [1.0 + number for number in prompts],
            [1.0 + number for number in prompts],
            [1 + number for number in prompts],
            window=[3 + number for number in prompts],
        ),
    ],
)
def test_dry_keeps_the_contract_of_processors(processor: Any) -> None:  # noqa: ANN401
    check_processor(processor, max_examples=20)


@LAWS
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=3),
    st.integers(1, 3),
    st.sets(st.integers(0, 3), max_size=2),
    st.none() | st.integers(1, 12),
    st.integers(1, 9),
)
def test_dry_is_its_definition(
    batch: list[list[int]], allowed_length: int, breakers: set[int], window: int | None, max_match: int
) -> None:
    processor = dk.DRY(0.5, 2.0, allowed_length, breakers, window=window, max_match=max_match)
    expected = [
        slow(text[-(window or len(text)) :], 0.5, 2.0, allowed_length, breakers, max_match) for text in batch
    ]
    assert expected == penalties(processor, batch)
