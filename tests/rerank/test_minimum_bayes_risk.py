"""Minimum Bayes risk (`mbr`): cases by hand, its laws, and brute force. `RiskReport` counts comparisons."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.chrf import CHRF

import decodekit as dk
from decodekit.rerank.minimum_bayes_risk import deduplicate
from tests.rerank.texts import SENTENCES, decoded

LISTS = st.lists(SENTENCES, min_size=1, max_size=6)
UTILITIES = [dk.ChrF(), dk.BLEU(), dk.UtilityFunction(lambda one, other: -abs(len(one) - len(other)))]


def test_the_median_has_the_least_risk() -> None:
    out = decoded([["1", "2", "9"]])
    best = dk.mbr(out, lambda one, other: -abs(int(one) - int(other)))
    assert best.texts == [["2", "1", "9"]]
    assert best.score[0].tolist() == pytest.approx([-8 / 3, -3.0, -5.0])
    assert (best.report.calls.tolist(), best.report.saved.tolist()) == ([9], [0])


def test_weights_by_probability_move_the_optimum() -> None:
    out = decoded([["1", "2", "9"]], [[math.log(0.1), math.log(0.1), math.log(0.8)]])
    best = dk.mbr(out, lambda one, other: -abs(int(one) - int(other)), weights="probability")
    assert best.texts == [["9", "2", "1"]]
    assert best.score[0].tolist() == pytest.approx([-1.5, -5.7, -6.5])


def test_references_may_come_from_another_run() -> None:
    best = dk.mbr(
        decoded([["1", "2"]]), lambda one, other: one == other, references=decoded([["2", "2", "3"]])
    )
    assert best.texts == [["2", "1"]]
    assert best.score[0].tolist() == pytest.approx([2 / 3, 0.0])


def test_a_utility_of_zero_and_one_finds_the_mode() -> None:
    model = dk.testing.HashModel(3, 5, scale=1.0)
    out = dk.decode(model, [[0], [1, 2]], dk.Sample(40, seeds=[1, 2]), max_new_tokens=2)
    best = dk.mbr(out, lambda one, other: one == other)
    for row, hypotheses in enumerate(out.hypotheses()):
        (mode, times), *others = Counter(map(tuple, hypotheses)).most_common()
        assert times > others[0][1]  # so that there is one mode
        assert (list(mode), times / 40) == (
            best.hypotheses()[row][0],
            pytest.approx(best.score[row, 0].item()),
        )


def test_under_the_model_the_utility_of_zero_and_one_finds_the_likeliest() -> None:
    model = dk.testing.HashModel(3, 5)
    out = dk.decode(model, [[0], [1, 2]], dk.BeamSearch(9, num_return=9), max_new_tokens=2)
    best = dk.mbr(out, lambda one, other: one == other, weights="probability")
    assert best.log_prob.argmax(1).tolist() == [0, 0]
    torch.testing.assert_close(out.log_prob.softmax(-1).amax(-1), best.score[:, 0])


@settings(max_examples=40, deadline=None)
@given(texts=LISTS, pseudo=LISTS, data=st.data())
def test_the_score_is_the_expected_utility_by_brute_force(
    texts: list[str], pseudo: list[str], data: st.DataObject
) -> None:
    log_probs = data.draw(st.lists(st.floats(-9, 0), min_size=len(pseudo), max_size=len(pseudo)))
    known = {text: number for number, text in enumerate(sorted(set(pseudo)))}
    log_probs = [log_probs[known[text]] for text in pseudo]  # the same text, the same probability
    for weights in ("uniform", "probability"):
        best = dk.mbr(decoded([texts]), dk.ChrF(), references=decoded([pseudo], [log_probs]), weights=weights)
        if weights == "uniform":
            shares = [1 / len(pseudo)] * len(pseudo)
        else:
            probabilities = {
                text: math.exp(log_prob) for text, log_prob in zip(pseudo, log_probs, strict=True)
            }
            shares = [
                probabilities[text] / sum(probabilities.values()) / pseudo.count(text) for text in pseudo
            ]
        scorer = CHRF()
        expected = {
            text: sum(
                share * scorer.sentence_score(text, [other]).score
                for share, other in zip(shares, pseudo, strict=True)
            )
            for text in texts
        }
        assert sorted(texts) == sorted(best.texts[0])
        for text, score in zip(best.texts[0], best.score[0].tolist(), strict=True):
            assert score == pytest.approx(
                expected[text], rel=1e-5, abs=1e-5
            )  # scores are of single precision
        assert max(expected.values()) == pytest.approx(expected[best.texts[0][0]], abs=1e-9)


@pytest.mark.parametrize(
    "options",
    [{}, {"weights": "probability"}, {"aggregate": True}, {"aggregate": True, "weights": "probability"}],
    ids=repr,
)
@pytest.mark.parametrize("utility", UTILITIES, ids=["chrF", "BLEU", "function"])
@settings(max_examples=25, deadline=None)
@given(texts=LISTS, data=st.data())
def test_the_order_of_hypotheses_does_not_matter(
    utility: dk.Utility, options: dict[str, Any], texts: list[str], data: st.DataObject
) -> None:
    if options.get("aggregate") and not isinstance(utility, dk.AggregableUtility):
        return
    log_probs = data.draw(st.lists(st.floats(-9, 0, width=32), min_size=len(texts), max_size=len(texts)))
    order = data.draw(st.permutations(range(len(texts))))
    ids = [[number] for number in range(len(texts))]
    one = decoded([texts], [log_probs], [ids])
    other = decoded(
        [[texts[number] for number in order]],
        [[log_probs[number] for number in order]],
        [[ids[number] for number in order]],
    )
    first, second = (dk.mbr(out, utility, **options) for out in (one, other))
    assert first.texts == second.texts
    assert first.tokens.tolist() == second.tokens.tolist()
    assert first.score.tolist() == second.score.tolist()  # to the last bit


@settings(max_examples=40, deadline=None)
@given(texts=LISTS, data=st.data())
def test_a_repeated_sequence_is_no_likelier(texts: list[str], data: st.DataObject) -> None:
    texts = sorted(set(texts))
    log_probs = data.draw(st.lists(st.floats(-9, 0, width=32), min_size=len(texts), max_size=len(texts)))
    again = data.draw(st.lists(st.sampled_from(range(len(texts))), max_size=4))
    once = dk.mbr(decoded([texts], [log_probs]), dk.ChrF(), weights="probability")
    twice = decoded(
        [[*texts, *(texts[number] for number in again)]],
        [[*log_probs, *(log_probs[number] for number in again)]],
    )
    several = dk.mbr(twice, dk.ChrF(), weights="probability")
    scores = dict(zip(several.texts[0], several.score[0].tolist(), strict=True))
    assert dict(zip(once.texts[0], once.score[0].tolist(), strict=True)) == scores
    assert once.texts[0][0] == several.texts[0][0]


def test_probabilities_of_different_ids_of_one_text_add_up() -> None:
    # "a" is the text of [1] and of [2, 3]; together they are likelier than "b".
    probs = [[math.log(0.3), math.log(0.3), math.log(0.4)]]
    out = decoded([["a", "a", "b"]], probs, [[[1], [2, 3], [4]]])
    best = dk.mbr(out, lambda one, other: one == other, weights="probability")
    assert best.texts == [["a", "a", "b"]]
    assert best.score[0].tolist() == pytest.approx([0.6, 0.6, 0.4])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights": "probability"},
        {"aggregate": True},
        {"pruning": dk.Pruning(confidence=0.8, schedule=(2, 4, 6), draws=50, seeds=7)},
    ],
    ids=["uniform", "probability", "aggregate", "pruning"],
)
@settings(max_examples=20, deadline=None)
@given(rows=st.lists(LISTS, min_size=2, max_size=3), data=st.data())
def test_a_batch_gives_what_each_prompt_alone_gives(
    options: dict[str, Any], rows: list[list[str]], data: st.DataObject
) -> None:
    log_probs = [data.draw(st.lists(st.floats(-9, 0), min_size=len(row), max_size=len(row))) for row in rows]
    together = dk.mbr(decoded(rows, log_probs), dk.ChrF(), **options)
    for number, row in enumerate(rows):
        alone = dk.mbr(decoded([row], [log_probs[number]]), dk.ChrF(), **options)
        assert alone.texts == [together.texts[number]]
        assert alone.score[0].tolist() == together.score[number, : len(row)].tolist()
        assert alone.report.calls.tolist() == [together.report.calls[number].item()]


@settings(max_examples=40, deadline=None)
@given(texts=LISTS)
def test_a_pair_is_computed_once(texts: list[str]) -> None:
    pairs: list[tuple[str, str]] = []

    def remember(one: str, other: str) -> float:
        pairs.append((one, other))
        return 0.0

    best = dk.mbr(decoded([texts]), remember)
    different = set(texts)
    assert sorted(pairs) == sorted((one, other) for one in different for other in different)
    assert best.report.calls.tolist() == [len(pairs)]


def test_texts_are_compared_in_an_order_of_their_own() -> None:
    assert deduplicate(["b", "a", "b"]) == (["a", "b"], [1, 0, 1])
    assert deduplicate([[2, 1], [2], [2, 1]]) == ([[2], [2, 1]], [1, 0, 1])


def test_a_tie_goes_to_the_likelier() -> None:
    out = decoded([["a", "b", "c"]], [[-3.0, -1.0, -2.0]])
    assert dk.mbr(out, lambda one, other: one == other).texts == [["b", "c", "a"]]


def test_the_result_is_a_whole_one_in_another_order() -> None:
    model = dk.load()
    out = dk.decode(model, ["Once upon a", "The king"], dk.Sample(5, seeds=[1, 2]), max_new_tokens=6)
    best = dk.mbr(out, dk.ChrF())
    before = {
        (row, tuple(ids)): place for row, own in enumerate(out.hypotheses()) for place, ids in enumerate(own)
    }
    for row, hypotheses in enumerate(best.hypotheses()):
        for rank, ids in enumerate(hypotheses):
            place = before[row, tuple(ids)]
            assert out.texts[row][place] == best.texts[row][rank]
            assert out.finish_reason[row][place] == best.finish_reason[row][rank]
            assert out.log_prob[row, place] == best.log_prob[row, rank]
            assert out.finish_code[row, place] == best.finish_code[row, rank]
    assert bool((best.score.diff() <= 0).all())
    assert out.sequences.shape == best.sequences.shape
    torch.testing.assert_close(
        dk.score(model, ["Once upon a", "The king"], best).log_prob, best.log_prob, atol=1e-3, rtol=0
    )
    assert repr(best).startswith("Decoded(prompts=2, hypotheses=5")


def test_every_field_follows_its_hypothesis() -> None:
    model = dk.testing.HashModel(5, 3, end_ids=(4,))
    out = dk.decode(model, [[0], [1, 2]], dk.BeamSearch(6, num_return=6), max_new_tokens=3, stop=dk.EndIds(3))
    assert len({reason for row in out.finish_reason for reason in row}) > 1
    best = dk.mbr(out, lambda one, other: len(one) * sum(other))
    for row, (before, after) in enumerate(zip(out.hypotheses(), best.hypotheses(), strict=True)):
        places = [before.index(ids) for ids in after]
        assert places != sorted(places)
        assert [out.finish_reason[row][place] for place in places] == best.finish_reason[row]
        for name in ("tokens", "lengths", "valid", "token_log_probs", "parents", "finish_code"):
            assert getattr(out, name)[row, places].tolist() == getattr(best, name)[row].tolist()


def test_hypotheses_that_are_not_valid_stay_last_and_count_nothing() -> None:
    out = decoded([["a", "b", "b"], ["c"]])
    best = dk.mbr(out, lambda one, other: one == other)
    assert best.texts == [["b", "b", "a"], ["c"]]
    assert best.valid.tolist() == [[True] * 3, [True, False, False]]
    assert best.score[1].tolist() == [1.0, -math.inf, -math.inf]
    assert best.finish_reason[1] == ["length", "missing", "missing"]


def test_a_prompt_without_hypotheses_stays_so() -> None:
    best = dk.mbr(decoded([["a"], []]), dk.ChrF(), aggregate=True)
    assert best.texts == [["a"], []]
    assert best.report.calls.tolist() == [1, 0]
    with pytest.raises(dk.DecodekitError, match="prompt 1 has no reference"):
        dk.mbr(decoded([["a"], ["b"]]), dk.ChrF(), references=decoded([["a"], []]))


@settings(max_examples=40, deadline=None)
@given(texts=LISTS)
def test_aggregation_is_exact_where_a_single_text_is_the_reference(texts: list[str]) -> None:
    single = decoded([[texts[0]]])
    for utility in (dk.ChrF(), dk.BLEU()):
        exact = dk.mbr(decoded([texts]), utility, references=single)
        mean = dk.mbr(decoded([texts]), utility, references=single, aggregate=True)
        assert exact.texts == mean.texts
        assert exact.score.tolist() == mean.score.tolist()


def test_aggregation_is_linear() -> None:
    texts = [str(number) * 3 for number in range(10)]
    best = dk.mbr(decoded([texts]), dk.ChrF(), aggregate=True)
    assert (best.report.calls.tolist(), best.report.saved.tolist()) == ([10], [90])


def test_references_must_be_of_as_many_prompts() -> None:
    with pytest.raises(
        dk.DecodekitError, match="references must be of the same prompts, got 2 prompts for 1"
    ):
        dk.mbr(decoded([["a"]]), dk.ChrF(), references=decoded([["a"], ["b"]]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": "model"}, ValueError, "weights must be 'uniform' or 'probability', got 'model'"),
        ({"pruning": 0.9}, TypeError, "pruning must be a Pruning or None, got 0.9"),
        ({"pruning": dk.Pruning(), "aggregate": True}, ValueError, "pruning saves nothing if"),
        (
            {"pruning": dk.Pruning(), "weights": "probability"},
            ValueError,
            "pruning draws references as samples",
        ),
        ({"references": ["a"]}, TypeError, "references must be what decode returns"),
    ],
)
def test_options_that_exclude_each_other_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        dk.mbr(decoded([["a"]]), dk.ChrF(), **options)
    with pytest.raises(TypeError, match="mbr: out must be what decode returns, got 'a'"):
        dk.mbr("a", dk.ChrF())  # type: ignore[arg-type]
