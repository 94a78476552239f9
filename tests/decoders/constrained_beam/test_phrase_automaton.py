"""How far texts are: against looking at every place in them."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.decoders.constrained_beam.phrase_automaton import PhraseAutomaton
from tests.decoders.constraint_oracle import Constraint, meets

PHRASES = st.lists(st.integers(0, 2), min_size=1, max_size=4)
CONSTRAINTS = st.lists(
    st.one_of(PHRASES.map(dk.Phrase), st.lists(PHRASES, min_size=1, max_size=3).map(dk.OneOf)), max_size=3
)


def table_of(constraints: list[Constraint], *, ordered: bool) -> PhraseAutomaton:
    phrases = [one.alternatives for one in constraints]
    return PhraseAutomaton.build([[phrases] if ordered else [[one] for one in phrases]])


def missing_after(table: PhraseAutomaton, text: list[int]) -> list[int]:
    """What is missing before each token, and at the end."""
    states = table.begin("test", dk.Prompt.from_ids([[0]]).history(1, 1))
    missing = [int(table.missing(states))]
    for token in text:
        states = table.after(states, torch.tensor([token]))
        missing.append(int(table.missing(states)))
    return missing


def test_a_phrase_that_breaks_off_falls_back_to_what_is_still_there_of_it() -> None:
    table = table_of([dk.Phrase([5, 5, 6])], ordered=False)
    assert missing_after(table, [5, 5, 5, 6]) == [3, 2, 1, 1, 0]
    assert missing_after(table, [5, 6, 5, 9]) == [3, 2, 3, 2, 3]


def test_only_the_constraint_that_is_furthest_counts_as_begun() -> None:
    # After 1 both are begun, and going on with one breaks off the other.
    table = table_of([dk.Phrase([1, 2]), dk.Phrase([1, 3])], ordered=False)
    assert missing_after(table, [1, 2, 1, 3]) == [4, 3, 2, 1, 0]
    assert missing_after(table, [1, 1]) == [4, 3, 3]


def test_phrases_may_overlap_unless_they_are_ordered() -> None:
    constraints: list[Constraint] = [dk.Phrase([1, 2]), dk.Phrase([2, 3])]
    assert missing_after(table_of(constraints, ordered=False), [1, 2, 3]) == [4, 3, 1, 0]
    assert missing_after(table_of(constraints, ordered=True), [1, 2, 3, 2, 3]) == [4, 3, 2, 2, 1, 0]


def test_of_a_disjunction_the_shortest_way_counts() -> None:
    table = table_of([dk.OneOf([[1, 2, 3], [4]])], ordered=False)
    assert missing_after(table, [1, 2, 4]) == [1, 1, 1, 0]
    # A phrase within another ends it.
    assert missing_after(table_of([dk.OneOf([[1, 2, 3, 4], [2, 3]])], ordered=False), [1, 2, 3]) == [
        2,
        2,
        1,
        0,
    ]


def test_a_large_id_is_not_taken_for_another_states_move() -> None:
    table = table_of([dk.Phrase([1, 1, 1])], ordered=False)
    assert missing_after(table, [1, 3, 1, 4, 5, 100]) == [3, 2, 3, 2, 3, 3, 3]


@settings(max_examples=300, deadline=None)
@given(CONSTRAINTS, st.booleans(), st.lists(st.integers(0, 3), max_size=10))
def test_nothing_is_missing_exactly_where_a_text_contains_everything(
    constraints: list[Constraint],
    ordered: bool,  # noqa: FBT001
    text: list[int],
) -> None:
    missing = missing_after(table_of(constraints, ordered=ordered), text)
    met = [meets(text[:length], constraints, ordered=ordered) for length in range(len(text) + 1)]
    assert met == [number == 0 for number in missing]


@settings(max_examples=200, deadline=None)
@given(CONSTRAINTS, st.booleans(), st.lists(st.integers(0, 3), max_size=6))
def test_some_next_id_always_makes_what_is_missing_smaller(
    constraints: list[Constraint],
    ordered: bool,  # noqa: FBT001
    text: list[int],
) -> None:
    table = table_of(constraints, ordered=ordered)
    states = table.begin("test", dk.Prompt.from_ids([[0]]).history(1, 1))
    for token in text:
        states = table.after(states, torch.tensor([token]))
    before = int(table.missing(states))
    after = [
        int(table.missing(table.after(states, torch.tensor([token]))))
        for token in table.next_ids(states)[0].tolist()
        if token >= 0
    ]
    assert before == 0 or min(after) < before
    assert int(table.fewest(states)) <= before
