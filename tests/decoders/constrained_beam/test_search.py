"""Constrained beam search: solved by hand, against enumeration, and refusals."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import (
    HashModel,
    MarkovModel,
    check_captures,
    check_decoder,
    enumerate_hypotheses,
    next_log_probs,
)
from tests.conformance import Guiding
from tests.decoders.constraint_oracle import Constraint, enough, meets

Search = dk.ConstrainedBeamSearch

# Token 0 starts, 3 ends. After 1 comes 1 or the end; 2 is unlikely everywhere.
MODEL = MarkovModel(
    [[0.0, 0.7, 0.2, 0.1], [0.0, 0.5, 0.1, 0.4], [0.0, 0.3, 0.1, 0.6], [0.25, 0.25, 0.25, 0.25]], end_ids=(3,)
)


def phrases(vocab: int, least: int = 0, longest: int = 3) -> st.SearchStrategy[list[Constraint]]:
    ids = st.lists(st.integers(least, vocab - 1), min_size=1, max_size=longest)
    any_of = st.lists(ids, min_size=1, max_size=3).map(dk.OneOf)
    return st.lists(st.one_of(ids.map(dk.Phrase), any_of), max_size=3)


def test_the_best_sequence_that_contains_the_phrase_is_found() -> None:
    out = dk.decode(MODEL, [[0]], Search(4, [dk.Phrase([2])], scorer=dk.LogProb()), max_new_tokens=3)
    assert out.hypotheses() == [[[2, 3]]]
    torch.testing.assert_close(out.score.exp(), torch.tensor([[0.2 * 0.6]]))
    free = dk.decode(MODEL, [[0]], Search(4, [], scorer=dk.LogProb()), max_new_tokens=3)
    assert free.hypotheses() == [[[1, 3]]]


def test_an_end_id_does_not_finish_a_hypothesis_before_all_constraints_are_met() -> None:
    # Everything else is far more likely to end at once.
    model = MarkovModel([[0.01, 0.01, 0.98], [0.01, 0.01, 0.98], [1, 0, 0]], end_ids=(2,))
    out = dk.decode(model, [[0]], Search(2, [dk.Phrase([1, 0, 1])], num_return=2), max_new_tokens=5)
    assert all(meets(text, [dk.Phrase([1, 0, 1])], ordered=False) for text in out.hypotheses()[0])
    assert out.hypotheses()[0][0] == [1, 0, 1, 2]


def test_an_ordered_search_keeps_the_order() -> None:
    both = [dk.Phrase([2]), dk.Phrase([1])]
    free = dk.decode(MODEL, [[0]], Search(9, both, scorer=dk.LogProb()), max_new_tokens=2)
    assert free.hypotheses() == [[[1, 2]]]
    ordered = dk.decode(MODEL, [[0]], Search(9, both, ordered=True, scorer=dk.LogProb()), max_new_tokens=2)
    assert ordered.hypotheses() == [[[2, 1]]]


def test_tokens_of_the_prompt_do_not_count() -> None:
    out = dk.decode(MODEL, [[2]], Search(4, [dk.Phrase([2])]), max_new_tokens=2)
    assert 2 in out.hypotheses()[0][0]


def test_a_phrase_may_end_with_an_end_id() -> None:
    out = dk.decode(MODEL, [[0]], Search(4, [dk.Phrase([2, 3])], num_return=2), max_new_tokens=3)
    assert all(text[-2:] == [2, 3] for text in out.hypotheses()[0])
    never = dk.decode(MODEL, [[0]], Search(4, [dk.Phrase([3, 2])]), max_new_tokens=4)
    assert never.finish_reason == [["missing"]]


def test_a_prompt_whose_constraints_do_not_fit_has_no_hypothesis_and_the_others_do() -> None:
    search = Search(2, [[dk.Phrase([2, 2, 2])], [dk.Phrase([2])]], num_return=2)
    out = dk.decode(MODEL, [[0], [0]], search, max_new_tokens=2)
    assert out.finish_reason[0] == ["missing", "missing"]
    assert out.valid.tolist() == [[False, False], [True, True]]
    assert out.lengths[0].tolist() == [0, 0]
    assert all(2 in text for text in out.hypotheses()[1])
    alone = dk.decode(MODEL, [[0]], Search(2, [dk.Phrase([2, 2, 2])]), max_new_tokens=2)
    assert alone.finish_reason == [["missing"]]
    assert alone.hypotheses() == [[]]


def test_a_processor_that_bans_a_constraint_leaves_no_hypothesis() -> None:
    out = dk.decode(
        HashModel(5, end_ids=(0,)),
        [[1]],
        Search(3, [dk.Phrase([2, 3])]),
        dk.SuppressTokens([3]),
        max_new_tokens=5,
    )
    assert out.finish_reason == [["missing"]]
    both = dk.BadWords([[2, 3]])
    out = dk.decode(HashModel(5, end_ids=(0,)), [[1]], Search(3, [dk.Phrase([2, 3])]), both, max_new_tokens=5)
    assert out.finish_reason == [["missing"]]


def test_constraints_and_bad_words_hold_together() -> None:
    must, never = [dk.Phrase([2, 3])], dk.BadWords([[3, 1], [4]])
    for seed in range(20):
        model = HashModel(5, seed, end_ids=(0,))
        out = dk.decode(model, [[1]], Search(3, must, num_return=3), never, max_new_tokens=6)
        assert out.valid[0, 0]
        for text in out.hypotheses()[0]:
            assert meets(text, must, ordered=False)
            assert not meets(text, [dk.OneOf([[3, 1], [4]])], ordered=False)


def test_a_prompt_on_which_every_token_is_banned_is_an_error_that_names_it() -> None:
    model = HashModel(5, end_ids=(0,))
    with pytest.raises(dk.DecodingError, match="every token is banned for prompt 0"):
        dk.decode(model, [[1]], Search(2, [dk.Phrase([2])]), dk.SuppressTokens(range(5)), max_new_tokens=3)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.sampled_from([(3, 2), (3, 3), (3, 4), (4, 2), (4, 3)]),
    data=st.data(),
    ordered=st.booleans(),
    alpha=st.sampled_from([0.0, 1.0]),
)
def test_as_many_beams_as_sequences_find_the_best_that_meets_all_constraints(
    seed: int,
    shape: tuple[int, int],
    data: st.DataObject,
    ordered: bool,  # noqa: FBT001
    alpha: float,
) -> None:
    vocab, new = shape
    constraints = data.draw(phrases(vocab, longest=2))
    model, scorer = HashModel(vocab, seed, end_ids=(0,)), dk.LengthPenalty(alpha)
    search = Search(vocab**new, constraints, ordered=ordered, scorer=scorer, stop_rule=dk.Proved())
    out = dk.decode(model, [[1]], search, max_new_tokens=new)
    every = enumerate_hypotheses(next_log_probs(model), [1], scorer, {0}, new)
    best = [one.tokens for one in every if meets(one.tokens, constraints, ordered=ordered)][:1]
    assert [best] == out.hypotheses()


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    beams=st.integers(1, 4),
    constraints=phrases(6, least=1),
    ordered=st.booleans(),
    room=st.integers(-1, 3),
    ends=st.sampled_from([(), (0,)]),
)
def test_every_hypothesis_meets_all_constraints_and_one_is_found_where_they_fit(
    seed: int,
    beams: int,
    constraints: list[Constraint],
    ordered: bool,  # noqa: FBT001
    room: int,
    ends: tuple[int, ...],
) -> None:
    new = max(2, enough(constraints) + room)
    search = Search(beams, constraints, ordered=ordered, num_return=beams)
    out = dk.decode(HashModel(6, seed), [[1], [2, 3]], search, max_new_tokens=new, end_ids=ends)
    for texts in out.hypotheses():
        assert all(meets(text, constraints, ordered=ordered) for text in texts)
        assert len({tuple(text) for text in texts}) == len(texts)
        assert texts or room < 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), beams=st.integers(1, 4), alpha=st.sampled_from([-1.0, 0.0, 1.0]))
def test_without_constraints_it_equals_beam_search(seed: int, beams: int, alpha: float) -> None:
    model, batch, scorer = HashModel(5, seed, end_ids=(2,)), [[1], [2, 3]], dk.LengthPenalty(alpha)
    free = dk.decode(model, batch, dk.BeamSearch(beams, scorer=scorer, num_return=beams), max_new_tokens=4)
    for constraints in ([], [[], []]):
        search = Search(beams, constraints, scorer=scorer, num_return=beams)
        out = dk.decode(model, batch, search, max_new_tokens=4)
        assert free.hypotheses() == out.hypotheses()
        assert free.score.tolist() == out.score.tolist()


def test_a_stopping_criterion_does_not_finish_a_hypothesis_before_all_constraints_are_met() -> None:
    must = [dk.Phrase([4, 3])]
    for seed in range(20):
        out = dk.decode(
            HashModel(5, seed), [[1]], Search(3, must, num_return=3), max_new_tokens=5, stop=dk.EndIds(3)
        )
        assert all(meets(text, must, ordered=False) for text in out.hypotheses()[0])
        assert [text[:-1].count(3) for text in out.hypotheses()[0]] == [0] * int(out.valid.sum())


MIXED = [dk.Phrase([3, 4]), dk.OneOf([[5, 5, 6], [1, 0]])]


@pytest.mark.slow
@pytest.mark.parametrize("ordered", [False, True])
def test_constrained_beam_search_keeps_the_laws_of_decoders(ordered: bool) -> None:  # noqa: FBT001
    check_decoder(Search(3, MIXED, ordered=ordered, num_return=3), max_examples=10)
    check_decoder(
        Search(3, MIXED[:1], ordered=ordered, num_return=2),
        stop=dk.EndIds(4) | dk.RepetitionLoop(2),
        max_examples=8,
    )


@pytest.mark.slow
def test_constraints_per_prompt_and_stepwise_scorers_keep_the_laws_of_decoders() -> None:
    check_decoder(
        lambda numbers: Search(
            4, [[dk.Phrase(n % 7), *[dk.Phrase([3, n % 7])] * (n % 2)] for n in numbers], num_return=2
        ),
        max_examples=10,
    )
    check_decoder(Search(3, MIXED[:1], scorer=Guiding(), stop_rule=dk.Proved(), num_return=3), max_examples=8)


def test_constrained_beam_search_is_captured_with_processors() -> None:
    check_captures(Search(4, MIXED), [dk.NoRepeatNGram(2), dk.MinNewTokens(3, end_ids=0)])


def test_a_stream_equals_the_result_and_is_empty_until_a_hypothesis_has_finished() -> None:
    model, text = dk.load(), "Once upon a time there was"
    for ids, new in ((model.tokenizer.encode(" wolf"), 8), (list(range(9)), 4)):
        stream = dk.stream(model, text, Search(3, [dk.Phrase(ids)]), max_new_tokens=new)
        streamed = "".join(piece.text for piece in stream)
        assert "".join(stream.result.texts[0]) == streamed


@pytest.mark.parametrize("beams", [0, -1, 2.0, True, [2, 3]])
def test_beams_must_be_an_integer_of_at_least_one(beams: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^ConstrainedBeamSearch: beams must be an integer of at least 1"):
        Search(beams, [])


def test_num_return_is_at_most_the_number_of_hypotheses_that_can_finish() -> None:
    for number in (0, 6, 1.0):
        with pytest.raises(
            ValueError, match=r"^ConstrainedBeamSearch: num_return must be an integer from 1 to 5"
        ):
            Search(5, [], num_return=number)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from 1 to 3"):
        Search(5, [], stop_rule=dk.Patience(0.5), num_return=4)


def test_arguments_of_a_wrong_type_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^ConstrainedBeamSearch: scorer must be"):
        Search(2, [], scorer=math.sqrt)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^ConstrainedBeamSearch: stop_rule must be"):
        Search(2, [], stop_rule=True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^ConstrainedBeamSearch: ordered must be True or False"):
        Search(2, [], ordered=1)  # type: ignore[arg-type]


def test_a_run_refuses_ids_lists_and_beams_that_do_not_fit() -> None:
    model = HashModel(4)
    with pytest.raises(
        dk.DecodekitError, match=r"^ConstrainedBeamSearch: token ids must be below the .* 4, got 4"
    ):
        dk.decode(model, [[1]], Search(2, [dk.Phrase([4])]), max_new_tokens=2)
    message = (
        r"^ConstrainedBeamSearch: constraints must be one list, or one for each prompt, got 2 for 3 prompts"
    )
    with pytest.raises(dk.DecodekitError, match=message):
        dk.decode(model, [[1], [2], [3]], Search(2, [[], [dk.Phrase(1)]]), max_new_tokens=2)
    with pytest.raises(dk.DecodekitError, match=r"^ConstrainedBeamSearch: there must be at least as many"):
        dk.decode(model, [[1]], Search(5, []), max_new_tokens=1)


def has(text: tuple[int, ...], phrase: list[int]) -> bool:
    return any(list(text[place : place + len(phrase)]) == phrase for place in range(len(text)))


@pytest.mark.parametrize(
    ("phrases", "new"),
    [
        ([[1, 2], [2, 3]], 3),
        ([[1, 2], [2, 3], [3, 1]], 4),
        ([[1, 2], [2, 1]], 3),
        ([[1, 1], [1, 2]], 3),
        ([[1, 2, 1], [2, 1, 2]], 4),
        ([[0, 1], [2]], 3),
        ([[1], [2], [3]], 3),
    ],
)
def test_where_phrases_must_overlap_every_sequence_that_fits_is_found(
    phrases: list[list[int]], new: int
) -> None:
    valid = {text for text in product(range(4), repeat=new) if all(has(text, phrase) for phrase in phrases)}
    for seed in range(6):
        for beams in (1, 2, 4):
            search = dk.ConstrainedBeamSearch(beams, [dk.Phrase(ids) for ids in phrases], num_return=beams)
            out = dk.decode(HashModel(4, seed=seed, scale=2.0), [[0]], search, max_new_tokens=new)
            found = {tuple(ids) for ids in out.hypotheses()[0]}
            assert found <= valid
            assert len(found) == min(beams, len(valid))
