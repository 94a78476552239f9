"""Progress with constraints: against a search for each phrase at every position."""

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


def automaton_of(constraints: list[Constraint], *, ordered: bool) -> PhraseAutomaton:
    phrases = [one.alternatives for one in constraints]
    return PhraseAutomaton.build([[phrases] if ordered else [[one] for one in phrases]])


def missing_after(automaton: PhraseAutomaton, tokens: list[int]) -> list[int]:
    """Missing tokens before each token, and at the end."""
    states = automaton.start("test", dk.Prompt.from_ids([[0]]).history(1, 1))
    missing = [int(automaton.missing(states))]
    for token in tokens:
        states = automaton.advance(states, torch.tensor([token]))
        missing.append(int(automaton.missing(states)))
    return missing


def test_a_phrase_that_breaks_off_falls_back_to_its_longest_beginning_that_still_matches() -> None:
    automaton = automaton_of([dk.Phrase([5, 5, 6])], ordered=False)
    assert missing_after(automaton, [5, 5, 5, 6]) == [3, 2, 1, 1, 0]
    assert missing_after(automaton, [5, 6, 5, 9]) == [3, 2, 3, 2, 3]


def test_only_the_constraint_with_most_matched_tokens_counts_as_begun() -> None:
    # After 1 both are begun, and going on with one breaks off the other.
    automaton = automaton_of([dk.Phrase([1, 2]), dk.Phrase([1, 3])], ordered=False)
    assert missing_after(automaton, [1, 2, 1, 3]) == [4, 3, 2, 1, 0]
    assert missing_after(automaton, [1, 1]) == [4, 3, 3]


def test_phrases_may_overlap_unless_ordered() -> None:
    constraints: list[Constraint] = [dk.Phrase([1, 2]), dk.Phrase([2, 3])]
    assert missing_after(automaton_of(constraints, ordered=False), [1, 2, 3]) == [4, 3, 1, 0]
    assert missing_after(automaton_of(constraints, ordered=True), [1, 2, 3, 2, 3]) == [4, 3, 2, 2, 1, 0]


def test_the_shortest_phrase_of_one_of_counts() -> None:
    automaton = automaton_of([dk.OneOf([[1, 2, 3], [4]])], ordered=False)
    assert missing_after(automaton, [1, 2, 4]) == [1, 1, 1, 0]
    # A phrase within another ends it.
    assert missing_after(automaton_of([dk.OneOf([[1, 2, 3, 4], [2, 3]])], ordered=False), [1, 2, 3]) == [
        2,
        2,
        1,
        0,
    ]


def test_an_id_above_all_phrase_ids_matches_nothing() -> None:
    automaton = automaton_of([dk.Phrase([1, 1, 1])], ordered=False)
    assert missing_after(automaton, [1, 3, 1, 4, 5, 100]) == [3, 2, 3, 2, 3, 3, 3]


@settings(max_examples=300, deadline=None)
@given(CONSTRAINTS, st.booleans(), st.lists(st.integers(0, 3), max_size=10))
def test_no_token_is_missing_exactly_where_all_constraints_are_met(
    constraints: list[Constraint],
    ordered: bool,  # noqa: FBT001
    tokens: list[int],
) -> None:
    missing = missing_after(automaton_of(constraints, ordered=ordered), tokens)
    met = [meets(tokens[:length], constraints, ordered=ordered) for length in range(len(tokens) + 1)]
    assert met == [number == 0 for number in missing]


@settings(max_examples=200, deadline=None)
@given(CONSTRAINTS, st.booleans(), st.lists(st.integers(0, 3), max_size=6))
def test_some_advancing_id_always_reduces_the_missing_tokens(
    constraints: list[Constraint],
    ordered: bool,  # noqa: FBT001
    tokens: list[int],
) -> None:
    automaton = automaton_of(constraints, ordered=ordered)
    states = automaton.start("test", dk.Prompt.from_ids([[0]]).history(1, 1))
    for token in tokens:
        states = automaton.advance(states, torch.tensor([token]))
    before = int(automaton.missing(states))
    after = [
        int(automaton.missing(automaton.advance(states, torch.tensor([token]))))
        for token in automaton.advancing_ids(states)[0].tolist()
        if token >= 0
    ]
    assert before == 0 or min(after) < before
    assert int(automaton.min_missing(states)) <= before
