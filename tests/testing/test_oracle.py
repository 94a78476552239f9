import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import (
    HashModel,
    Hypothesis,
    MarkovModel,
    beam_search,
    enumerate_hypotheses,
    greedy,
    next_log_probs,
)

LAWS = settings(max_examples=40, deadline=None, derandomize=True, database=None)

END = 0
# From 1 mostly on to 1, from 2 mostly to the end.
MODEL = MarkovModel([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3], [0.7, 0.1, 0.2]], end_ids=(END,))
LOG_PROBS = next_log_probs(MODEL)


def until_full(scores: list[float], length: int, best_live: float, max_length: int) -> bool:
    """Stop as soon as there are as many finished hypotheses as beams."""
    del scores, length, best_live, max_length
    return False


def to_the_end(scores: list[float], length: int, best_live: float, max_length: int) -> bool:
    """Never stop."""
    del scores, length, best_live, max_length
    return True


def by_hand(hypotheses: list[Hypothesis]) -> list[tuple[list[int], float]]:
    """Tokens and probabilities, rounded as a person would write them down."""
    return [(tokens, round(math.exp(log_prob), 4)) for tokens, log_prob, _ in hypotheses]


# The model as a function


def test_next_log_probs_are_the_models_normalised() -> None:
    assert [round(math.exp(log_prob), 6) for log_prob in LOG_PROBS([0, 2])] == [0.7, 0.1, 0.2]
    log_probs = next_log_probs(HashModel(5))([1, 2, 3])
    # Single precision.
    assert sum(map(math.exp, log_probs)) == pytest.approx(1.0, abs=1e-6)


def test_greedy_says_the_likeliest_token_until_the_end() -> None:
    assert by_hand([greedy(LOG_PROBS, [1], {END}, 3)]) == [([1, 1, 1], 0.125)]
    assert by_hand([greedy(LOG_PROBS, [2], {END}, 3)]) == [([0], 0.7)]


def test_greedy_of_tied_tokens_says_the_lowest() -> None:
    assert greedy(lambda _: [-1.0, -0.5, -0.5], [0], set(), 2).tokens == [1, 1]


# Beam search by hand: from [1] with two beams and three tokens at most.
#
#   step 1   1 .5    2 .3    end .2                       the end is third: does not count
#   step 2   1 1 .25    2 end .21    1 2 .15    1 end .10 the second ends
#   step 3   1 1 1 .125    1 2 end .105    1 1 2 .075     the limit: both end


def test_beam_search_by_hand_ranked_by_probability() -> None:
    found = beam_search(LOG_PROBS, [1], 2, dk.LogProb(), to_the_end, {END}, 3)
    assert by_hand(found) == [([2, 0], 0.21), ([1, 1, 1], 0.125)]


def test_beam_search_by_hand_ranked_by_probability_a_token() -> None:
    # log .21 / 2 = -.780 is below log .105 / 3 = -.751 and log .125 / 3 = -.693.
    found = beam_search(LOG_PROBS, [1], 2, dk.LengthPenalty(1.0), to_the_end, {END}, 3)
    assert by_hand(found) == [([1, 1, 1], 0.125), ([1, 2, 0], 0.105)]
    assert [round(hypothesis.score, 3) for hypothesis in found] == [-0.693, -0.751]


def test_beam_search_stops_when_it_is_told() -> None:
    # With room for a fourth token only the ones that ended count after step 3, and there are two.
    found = beam_search(LOG_PROBS, [1], 2, dk.LengthPenalty(1.0), until_full, {END}, 4)
    assert by_hand(found) == [([1, 2, 0], 0.105), ([2, 0], 0.21)]
    # Going on pays: log .0625 / 4 = -.693 and log .0525 / 4 = -.737.
    found = beam_search(LOG_PROBS, [1], 2, dk.LengthPenalty(1.0), to_the_end, {END}, 4)
    assert by_hand(found) == [([1, 1, 1, 1], 0.0625), ([1, 1, 2, 0], 0.0525)]


def test_beam_search_asks_whether_to_go_on_once_enough_have_finished() -> None:
    asked = []

    def goes_on(scores: list[float], length: int, best_live: float, max_length: int) -> bool:
        asked.append(
            ([round(math.exp(s), 4) for s in scores], length, round(math.exp(best_live), 4), max_length)
        )
        return True

    beam_search(LOG_PROBS, [1], 2, dk.LogProb(), goes_on, {END}, 4)
    assert asked == [([0.21, 0.105], 3, 0.125, 4)]  # after step 4 nothing is live


def test_beam_search_of_one_beam_by_hand() -> None:
    found = beam_search(LOG_PROBS, [1], 1, dk.LogProb(), until_full, {END}, 3)
    assert by_hand(found) == [([1, 1, 1], 0.125)]


def test_beam_search_finds_no_more_than_there_are() -> None:
    sure = MarkovModel([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], end_ids=(END,))
    found = beam_search(next_log_probs(sure), [1], 3, dk.LogProb(), to_the_end, {END}, 5)
    assert by_hand(found) == [([2, 0], 1.0)]


def test_beam_search_by_hand_is_the_decoders() -> None:
    for scorer in (dk.LogProb(), dk.LengthPenalty(1.0)):
        for stop_rule, goes_on in ((dk.WhenFull(), until_full), (dk.Proved(), to_the_end)):
            decoder = dk.BeamSearch(2, scorer=scorer, stop_rule=stop_rule, num_return=2)
            for new in (3, 4):
                expected = beam_search(LOG_PROBS, [1], 2, scorer, goes_on, {END}, new)
                out = dk.decode(MODEL, [[1]], decoder, max_new_tokens=new)
                assert [[hypothesis.tokens for hypothesis in expected]] == out.hypotheses()


# Enumeration


@pytest.mark.parametrize(("vocab", "new"), [(2, 1), (2, 5), (3, 3), (4, 2)])
def test_enumeration_without_end_has_every_text_of_full_length(vocab: int, new: int) -> None:
    every = enumerate_hypotheses(next_log_probs(HashModel(vocab)), [0], dk.LogProb(), set(), new)
    assert len(every) == vocab**new
    assert len({tuple(hypothesis.tokens) for hypothesis in every}) == vocab**new


@pytest.mark.parametrize(("vocab", "new"), [(2, 1), (2, 5), (3, 3), (4, 2)])
@pytest.mark.parametrize("ends", [1, 2])
def test_enumeration_has_every_text_that_ends_and_every_one_of_full_length(
    vocab: int, new: int, ends: int
) -> None:
    every = enumerate_hypotheses(next_log_probs(HashModel(vocab)), [0], dk.LogProb(), set(range(ends)), new)
    goes_on = vocab - ends
    assert len(every) == sum(goes_on**before * ends for before in range(new)) + goes_on**new


@LAWS
@given(st.integers(0, 2**31), st.sampled_from([set(), {0}, {0, 2}]), st.integers(1, 4))
def test_enumerated_probabilities_sum_to_one(seed: int, ends: set[int], new: int) -> None:
    every = enumerate_hypotheses(next_log_probs(HashModel(3, seed)), [1], dk.LogProb(), ends, new)
    # Single-precision log-probabilities of up to 81 texts.
    assert sum(math.exp(hypothesis.log_prob) for hypothesis in every) == pytest.approx(1.0, abs=1e-5)


def test_enumeration_leaves_out_what_cannot_be_said() -> None:
    every = enumerate_hypotheses(LOG_PROBS, [0], dk.LogProb(), set(), 3)
    assert by_hand(every) == [([0, 0, 0], 1.0)]


def test_enumeration_is_best_first_by_the_scorer() -> None:
    for scorer in (dk.LogProb(), dk.LengthPenalty(1.0), dk.LengthPenalty(-1.0)):
        scores = [hypothesis.score for hypothesis in enumerate_hypotheses(LOG_PROBS, [1], scorer, {END}, 4)]
        assert sorted(scores, reverse=True) == scores
    best = enumerate_hypotheses(LOG_PROBS, [1], dk.LogProb(), {END}, 3)[:3]
    assert by_hand(best) == [([2, 0], 0.21), ([0], 0.2), ([1, 1, 1], 0.125)]


# Laws that hold between them


@LAWS
@given(
    st.integers(0, 2**31),
    st.sampled_from([set(), {0}, {0, 2}]),
    st.integers(1, 3),
    st.sampled_from([-1.0, 0.0, 1.0]),
)
def test_beam_search_as_wide_as_the_tree_is_enumeration(
    seed: int, ends: set[int], new: int, alpha: float
) -> None:
    log_probs, scorer = next_log_probs(HashModel(3, seed)), dk.LengthPenalty(alpha)
    every = enumerate_hypotheses(log_probs, [1], scorer, ends, new)
    assert every == beam_search(log_probs, [1], 3**new, scorer, to_the_end, ends, new)


@LAWS
@given(st.integers(0, 2**31), st.sampled_from([set(), {0}, {0, 2}]), st.integers(1, 6))
def test_beam_search_of_one_beam_is_greedy(seed: int, ends: set[int], new: int) -> None:
    log_probs = next_log_probs(HashModel(5, seed))
    expected = greedy(log_probs, [1], ends, new)
    [found] = beam_search(log_probs, [1], 1, dk.LogProb(), until_full, ends, new)
    assert (expected.tokens, expected.log_prob) == (found.tokens, found.log_prob)


@LAWS
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_what_is_found_is_worth_what_the_model_says(seed: int, beams: int) -> None:
    model, new = HashModel(5, seed), 4
    found = beam_search(next_log_probs(model), [1], beams, dk.LengthPenalty(1.0), to_the_end, {0}, new)
    scored = dk.score(model, [[1]], [[hypothesis.tokens for hypothesis in found]])
    expected = torch.tensor([[hypothesis.log_prob for hypothesis in found]])
    # The same logarithms, summed in another order.
    torch.testing.assert_close(expected, scored.log_prob, atol=1e-5, rtol=1e-6)
    for hypothesis in found:
        # The scorer works in single precision.
        assert hypothesis.score == pytest.approx(hypothesis.log_prob / len(hypothesis.tokens), rel=1e-6)
