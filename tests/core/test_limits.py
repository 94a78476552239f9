import pytest
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

import decodekit as dk
from decodekit.core.limits import END, FIRST_CRITERION, LENGTH


class Fires(dk.StoppingCriterion):
    """Finishes the rows it is told to, and counts how often it was asked."""

    def __init__(self, rows: list[bool], reason: str) -> None:
        self.rows = torch.tensor(rows)
        self.name = reason

    @property
    def reason(self) -> str:
        return self.name

    def init(self, history: dk.History, run: dk.StoppingContext) -> int:  # noqa: ARG002
        return 0

    def apply(
        self,
        history: dk.History,  # noqa: ARG002
        log_probs: Float32[Tensor, " rows"],  # noqa: ARG002
        memory: int,
    ) -> tuple[Bool[Tensor, " rows"], int]:
        return self.rows, memory + 1


def limits(*criteria: dk.StoppingCriterion, new: int = 3) -> dk.Limits:
    return dk.Limits(
        end_ids=(0, 4), pad_id=0, prompt_length=2, max_new_tokens=new, vocab=9, criteria=criteria
    )


def history(newest: list[int]) -> dk.History:
    """Prompts of two tokens and one more."""
    start = dk.History(
        torch.full((len(newest), 6), 4), torch.ones(len(newest), 6, dtype=torch.bool), torch.tensor(2)
    )
    return start.append(torch.tensor(newest))


def finish(of: dk.Limits, newest: list[int]) -> list[int]:
    """What finishes rows with these newest tokens."""
    said = history(newest)
    return of.finish(said, torch.zeros(len(newest)), of.start(said))[0].tolist()


def test_end_ids_are_compared_with_any_shape() -> None:
    assert limits().is_end(torch.tensor([[0, 1], [4, 5]])).tolist() == [[True, False], [True, False]]


def test_a_row_is_finished_by_an_end_id_or_the_limit_and_the_end_id_comes_first() -> None:
    assert finish(limits(), [1, 0, 4]) == [0, END, END]
    assert finish(limits(new=1), [1, 0, 4]) == [LENGTH, END, END]


def test_what_the_prompt_says_finishes_nothing() -> None:
    assert finish(limits(), [1]) == [0]  # the prompts are full of end ids


def test_a_criterion_outranks_the_limit_and_not_an_end_id() -> None:
    criterion = Fires([True, True, False], "some")
    assert finish(limits(criterion), [1, 0, 1]) == [FIRST_CRITERION, END, 0]
    assert finish(limits(criterion, new=1), [1, 0, 1]) == [FIRST_CRITERION, END, LENGTH]


def test_of_several_criteria_the_first_says_why_and_all_are_asked() -> None:
    one = Fires([False, True, False], "one")
    two = Fires([True, True, False], "two")
    of = limits(one, two)
    said = history([1, 1, 1])
    finish_code, stopping = of.finish(said, torch.zeros(3), of.start(said))
    assert finish_code.tolist() == [FIRST_CRITERION + 1, FIRST_CRITERION, 0]
    assert stopping.memories == (1, 1)
    assert of.reasons(finish_code[None]) == [["two", "one", ""]]


def test_reasons_have_names() -> None:
    named = limits(Fires([], "one"), Fires([], "two")).reasons(torch.tensor([[1, 2], [3, 4]]))
    assert named == [["end", "length"], ["one", "two"]]


def test_without_criteria_nothing_is_remembered() -> None:
    assert limits().start(history([1])).memories == ()


def test_a_criterion_that_answers_for_other_rows_is_refused() -> None:
    with pytest.raises(dk.DecodekitError, match=r"one boolean per row \(2\), and "):
        finish(limits(Fires([True], "short")), [1, 1])
