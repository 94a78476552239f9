"""Self-consistency (`self_consistency`): votes by hand, brute force, and its laws. `Votes` lists them."""

import math
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from tests.rerank.texts import decoded


def last_number(text: str) -> int | None:
    digits = "".join(character if character.isdigit() else " " for character in text).split()
    return int(digits[-1]) if digits else None


SAYINGS = ["it is 4", "2 + 2 = 4", "4", "5", "so 5", "perhaps", "7"]
ROWS = st.lists(st.tuples(st.sampled_from(SAYINGS), st.floats(-6, 0, width=32)), min_size=1, max_size=7)


def test_the_majority_wins_and_its_likeliest_hypothesis_is_first() -> None:
    out = decoded([["4", "5", "it is 5", "dunno"]], [[-1.0, -3.0, -2.0, -0.5]])
    best = dk.self_consistency(out, last_number)
    assert best.texts == [["it is 5", "5", "4", "dunno"]]
    assert (best.report.answers, best.report.votes) == ([[5, 4]], [[2.0, 1.0]])
    assert best.report.answer_of == [[5, 5, 4, None]]
    assert best.score[0].tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3, 0.0])


def test_probability_may_outweigh_the_majority() -> None:
    out = decoded([["4", "5", "it is 5"]], [[math.log(0.5), math.log(0.2), math.log(0.1)]])
    best = dk.self_consistency(out, last_number, weights="probability")
    assert best.report.answers == [[4, 5]]
    assert best.report.votes[0] == pytest.approx([0.5, 0.3])
    assert best.score[0].tolist() == pytest.approx([0.625, 0.375, 0.375])


def test_per_token_a_long_text_weighs_as_much_as_a_short_one() -> None:
    # -1 for one token, -2 for four: a half a token.
    out = decoded([["4", "so it must be 5"]], [[-1.0, -2.0]], [[[1], [2, 3, 4, 5]]])
    best = dk.self_consistency(out, last_number, weights="per_token")
    assert best.report.answers == [[5, 4]]
    assert best.report.votes[0] == pytest.approx([math.exp(-0.5), math.exp(-1)])


def test_a_tie_goes_to_the_answer_of_the_likelier_hypothesis() -> None:
    out = decoded([["4", "5"], ["4", "5"]], [[-2.0, -1.0], [-1.0, -2.0]])
    assert dk.self_consistency(out, last_number).report.answers == [[5, 4], [4, 5]]


def test_without_any_answer_the_likeliest_is_first() -> None:
    best = dk.self_consistency(decoded([["a", "b"]], [[-2.0, -1.0]]), last_number)
    assert best.texts == [["b", "a"]]
    assert (best.report.answers, best.report.votes, best.score.tolist()) == ([[]], [[]], [[0.0, 0.0]])


def test_probabilities_that_underflow_still_decide() -> None:
    out = decoded([["4", "5", "5."]], [[-2000.0, -2000.1, -2000.2]])
    best = dk.self_consistency(out, last_number, weights="probability")
    assert best.report.answers == [[5, 4]]
    assert best.report.votes == [[0.0, 0.0]]
    both = math.exp(-0.1) + math.exp(-0.2)
    # Log-probabilities of single precision, at 2000.
    assert best.score[0, 0].item() == pytest.approx(both / (both + 1), abs=1e-3)


@pytest.mark.parametrize("weights", ["uniform", "probability", "per_token"])
@settings(max_examples=60, deadline=None)
@given(row=ROWS, data=st.data())
def test_it_equals_counting_by_hand_in_any_order(
    weights: Any,  # noqa: ANN401
    row: list[tuple[str, float]],
    data: st.DataObject,
) -> None:
    ids = [[number] * (1 + number % 3) for number in range(len(row))]
    votes: dict[int, float] = defaultdict(float)
    for (text, log_prob), own in zip(row, ids, strict=True):
        answer = last_number(text)
        if answer is not None:
            weight = {"uniform": 0.0, "probability": log_prob, "per_token": log_prob / len(own)}[weights]
            votes[answer] += math.exp(weight)
    order = data.draw(st.permutations(range(len(row))))
    results = [
        dk.self_consistency(
            decoded(
                [[row[number][0] for number in places]],
                [[row[number][1] for number in places]],
                [[ids[number] for number in places]],
            ),
            last_number,
            weights=weights,
        )
        for places in (range(len(row)), order)
    ]
    found = dict(zip(results[0].report.answers[0], results[0].report.votes[0], strict=True))
    assert found == pytest.approx(dict(votes))
    assert results[0].report.votes[0] == sorted(results[0].report.votes[0], reverse=True)
    assert results[0].texts == results[1].texts
    assert results[0].score.tolist() == results[1].score.tolist()
    assert results[0].report.answers == results[1].report.answers


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(ROWS, min_size=2, max_size=3))
def test_a_batch_gives_what_each_prompt_alone_gives(rows: list[list[tuple[str, float]]]) -> None:
    def vote(rows: list[list[tuple[str, float]]]) -> dk.Decoded:
        texts, log_probs = ([[one[part] for one in row] for row in rows] for part in (0, 1))
        ids = [[[number] for number in range(len(row))] for row in rows]
        return dk.self_consistency(decoded(texts, log_probs, ids), last_number, weights="probability")

    together = vote(rows)
    for number, row in enumerate(rows):
        alone = vote([row])
        assert alone.texts == [together.texts[number]]
        assert alone.score[0].tolist() == together.score[number, : len(row)].tolist()
        assert alone.report.votes == [together.report.votes[number]]


def test_answers_are_extracted_from_ids_if_there_are_no_texts() -> None:
    model = dk.testing.MarkovModel([[0.2, 0.8], [0.5, 0.5]])
    out = dk.decode(model, [[0]], dk.BeamSearch(4, num_return=4), max_new_tokens=2)
    best = dk.self_consistency(out, sum)
    assert (best.report.answers, best.report.votes) == ([[1, 2, 0]], [[2.0, 1.0, 1.0]])
    assert dk.self_consistency(decoded([["a"]]), tuple, ids=True).report.answers == [[(0,)]]
    with pytest.raises(dk.DecodekitError, match="self_consistency: texts need a tokenizer"):
        dk.self_consistency(out, sum, ids=False)


def test_answers_that_are_not_hashable_are_refused() -> None:
    with pytest.raises(dk.DecodekitError, match="an answer must be None or something hashable"):
        dk.self_consistency(decoded([["a"]]), lambda text: [text])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((5, str), {}, TypeError, "out must be what decode returns, got 5"),
        ((decoded([["a"]]), "answer"), {}, TypeError, "extract must be callable, got 'answer'"),
        ((decoded([["a"]]), str), {"weights": "log"}, ValueError, "weights must be 'uniform', 'probability'"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: Any,  # noqa: ANN401
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=f"self_consistency: {message}"):
        dk.self_consistency(*arguments, **options)
