from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import decodekit
from decodekit.core.validation import (
    FINITE,
    FLAG,
    FRACTION,
    NON_NEGATIVE,
    OPEN_FRACTION,
    POSITIVE,
    POSITIVE_FRACTION,
    Requirement,
    at_least,
    check_fields,
    set_fields,
    shown,
)

NOT_NUMBERS = (True, "1", None, float("nan"))


@dataclass(frozen=True)
class Sampler:
    count: Any
    share: Any = 0.5

    def __post_init__(self) -> None:
        check_fields(self, count=at_least(2), share=FRACTION)
        set_fields(self, count=int(self.count))


@pytest.mark.parametrize(
    ("requirement", "good", "bad"),
    [
        (FINITE, (-1e38, 0, 2.5), (1e39, float("inf"))),
        (POSITIVE, (1e-37, 3), (0, -1.0, 1e-39)),  # below single precision's normal numbers
        (NON_NEGATIVE, (0, 0.5), (-0.1, float("inf"))),
        (FRACTION, (0, 0.5, 1), (-0.1, 1.1)),
        (POSITIVE_FRACTION, (0.1, 1), (0, 1.1)),
        (OPEN_FRACTION, (0.1, 0.9), (0, 1)),
        (at_least(2), (2, 2**63 - 1), (1, 2.0, 2**63)),
    ],
)
def test_a_requirement_accepts_its_numbers_and_nothing_else(
    requirement: Requirement, good: tuple[Any, ...], bad: tuple[Any, ...]
) -> None:
    assert [True] * len(good) == [requirement.holds(value) for value in good]
    assert [False] * (len(bad) + 4) == [requirement.holds(value) for value in (*bad, *NOT_NUMBERS)]


def test_a_flag_is_true_or_false() -> None:
    assert [FLAG.holds(value) for value in (True, False, 1, None)] == [True, True, False, False]


def test_a_message_names_the_class_the_field_the_words_and_the_value() -> None:
    with pytest.raises(ValueError, match=r"^Sampler: count must be an integer of at least 2, got 1\.$"):
        Sampler(1)
    with pytest.raises(ValueError, match=r"^Sampler: share must be in \[0, 1\], got 2\.$"):
        Sampler(2, share=2)


def test_a_message_ends_with_the_advice() -> None:
    with pytest.raises(ValueError, match=r"^X: y must be a finite number above 0, got 0\. Use Greedy\(\)\.$"):
        POSITIVE._replace(advice="Use Greedy().").check("X", "y", 0)


def test_fields_of_a_frozen_class_can_be_set_while_it_is_made() -> None:
    assert Sampler(3) == Sampler(3, 0.5)


def test_a_value_in_a_message_is_one_line_and_ends_in_an_ellipsis_where_it_is_cut() -> None:
    assert shown("short") == "'short'"
    assert shown("a" * 78) == repr("a" * 78)
    assert shown("a" * 79) == "'" + "a" * 78 + "…"
    assert shown([1, 2, 3], 5) == "[1, …"
    assert "\n" not in shown(torch.zeros(2, 2))


def test_no_message_cuts_a_value_without_a_sign() -> None:
    files = Path(decodekit.__file__).parent.rglob("*.py")
    assert [path.name for path in files if "!r:." in path.read_text()] == []
