"""Diverse beam search: solved by hand, against beam search, against transformers."""

import itertools
from typing import Any

import pytest
import torch

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel, check_decoder
from tests.recorded.recorded import Case, cases, model

# Token 0 starts and is never emitted again; each token is followed by any of the others, with these chances.
MODEL = MarkovModel([[0.0, 0.5, 0.3, 0.2]] * 4)
PLAIN = [
    case
    for case in cases("transformers", "group_beam")
    # Theirs counts the padding of finished groups, and takes the penalty off before the repetition penalty.
    if not case.found["pad_matters"] and "repetition_penalty" not in case.settings
]
RULES = {True: dk.WhenFull(), False: dk.Heuristic(), "never": dk.Proved()}


def test_later_groups_emit_other_tokens_and_scores_include_the_penalties() -> None:
    search = dk.DiverseBeamSearch(3, 3, diversity=dk.Hamming(5.0), scorer=dk.LogProb(), num_return=3)
    out = dk.decode(MODEL, [[0]], search, max_new_tokens=2)
    assert out.hypotheses() == [[[1, 1], [2, 2], [3, 3]]]
    torch.testing.assert_close(out.score.exp(), torch.tensor([[0.25, 0.09, 0.04]]))
    # For the third group 1 costs once, as 2 does: 0.5 e^-0.6 is above 0.2 and 0.3 e^-0.6, but found already.
    search = dk.DiverseBeamSearch(3, 3, diversity=dk.Hamming(0.6), scorer=dk.LogProb(), num_return=3)
    out = dk.decode(MODEL, [[0]], search, max_new_tokens=1)
    assert out.hypotheses() == [[[1], [2]]]
    assert out.finish_reason == [["length", "length", "missing"]]
    torch.testing.assert_close(out.score.exp(), torch.tensor([[0.5, 0.3, 0.0]]))
    torch.testing.assert_close(out.token_log_probs[0, :2, 0].exp(), torch.tensor([0.5, 0.3]))


def test_n_grams_of_earlier_groups_are_avoided() -> None:
    search = dk.DiverseBeamSearch(
        2, 2, diversity=dk.NGramDiversity(2, 9.0), scorer=dk.LogProb(), num_return=2
    )
    out = dk.decode(MODEL, [[0]], search, max_new_tokens=4)
    first, second = out.hypotheses()[0]
    assert first == [1, 1, 1, 1]
    assert second[0] == 1
    assert (1, 1) not in set(itertools.pairwise(second))


def test_one_group_equals_beam_search() -> None:
    for seed in range(10):
        toy = HashModel(5, seed, end_ids=(2,))
        diverse = dk.DiverseBeamSearch(3, 1, stop_rule=dk.Proved(), num_return=3)
        out = dk.decode(toy, [[1], [2, 3]], diverse, max_new_tokens=4)
        plain = dk.decode(
            toy, [[1], [2, 3]], dk.BeamSearch(3, stop_rule=dk.Proved(), num_return=3), max_new_tokens=4
        )
        assert plain.hypotheses() == out.hypotheses()
        assert plain.score.tolist() == out.score.tolist()
        assert plain.parents.tolist() == out.parents.tolist()


def test_parents_are_rows_of_the_whole_search() -> None:
    search = dk.DiverseBeamSearch(4, 2, diversity=dk.Hamming(9.0), num_return=4)
    out = dk.decode(MODEL, [[0], [1]], search, max_new_tokens=3)
    for prompt, hyps in enumerate(out.parents.tolist()):
        groups = [{(row - 4 * prompt) // 2 for row in rows} for rows in hyps]
        assert all(len(group) == 1 for group in groups)
        assert set.union(*groups) == {0, 1}


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize("case", PLAIN[::4], ids=str)
def test_diverse_beam_search_equals_transformers(case: Case) -> None:
    asked, number = case.settings, case.per_prompt
    search = dk.DiverseBeamSearch(
        asked["num_beams"],
        asked["num_beam_groups"],
        diversity=dk.Hamming(asked["diversity_penalty"]),
        scorer=dk.LengthPenalty(asked.get("length_penalty", 1.0)),
        stop_rule=RULES[asked.get("early_stopping", False)],
        num_return=number,
    )
    ngrams = [dk.NoRepeatNGram(asked["no_repeat_ngram_size"])] if "no_repeat_ngram_size" in asked else []
    options: Any = {"max_new_tokens": case.max_new_tokens, "end_ids": tuple(case.end)}
    out = dk.decode(dk.HFModel(model(case.model)), case.prompts, search, ngrams, **options)
    assert case.alone_scores is not None
    for place, texts in enumerate(out.hypotheses()):
        part = slice(place * number, (place + 1) * number)
        # Theirs repeats what several groups have found; the first is the one with the best score.
        theirs: dict[tuple[int, ...], float] = {}
        for body, score in zip(case.bodies[part], case.alone_scores[part], strict=True):
            theirs.setdefault(tuple(body), score)
        assert len(set(map(tuple, texts))) == len(texts)
        ours: dict[tuple[int, ...], float] = {}
        for text, score in zip(texts, out.score[place].tolist(), strict=False):
            ours.setdefault(tuple(text[:-1] if text[-1] in case.end else text), score)
        # Sums in single precision, in another order.
        assert {body: ours.get(body) for body in theirs} == pytest.approx(theirs, rel=1e-4, abs=1e-4)
        assert len(theirs) <= len(texts)


@pytest.mark.slow
@pytest.mark.parametrize("diversity", [dk.Hamming(0.7), dk.NGramDiversity(2, 0.7)])
def test_diverse_beam_search_keeps_the_laws_of_decoders(diversity: dk.Diversity) -> None:
    check_decoder(dk.DiverseBeamSearch(4, 2, diversity=diversity, num_return=3), max_examples=8)
    search = dk.DiverseBeamSearch(3, 3, diversity=diversity, stop_rule=dk.WhenFull(), num_return=3)
    check_decoder(search, stop=dk.EndIds(4) | dk.RepetitionLoop(2), max_examples=6)


def test_a_prompt_on_which_every_token_is_banned_is_an_error_that_names_it() -> None:
    with pytest.raises(dk.DecodingError, match="every token is banned for prompt 0"):
        dk.decode(MODEL, [[0]], dk.DiverseBeamSearch(2, 2), dk.SuppressTokens(range(4)), max_new_tokens=3)


@pytest.mark.parametrize("groups", [0, -1, 3, 2.0, True, "2"])
def test_groups_must_divide_beams(groups: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^DiverseBeamSearch: groups must be an integer of at least 1 that"):
        dk.DiverseBeamSearch(4, groups)


def test_arguments_out_of_range_or_of_a_wrong_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^DiverseBeamSearch: beams must be"):
        dk.DiverseBeamSearch(0, 1)
    for number in (0, 5):
        with pytest.raises(
            ValueError, match=r"^DiverseBeamSearch: num_return must be an integer from 1 to 4"
        ):
            dk.DiverseBeamSearch(4, 2, num_return=number)
    with pytest.raises(TypeError, match=r"^DiverseBeamSearch: diversity must be a Diversity such as"):
        dk.DiverseBeamSearch(4, 2, diversity=0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^DiverseBeamSearch: scorer must be"):
        dk.DiverseBeamSearch(4, 2, scorer=1.0)  # type: ignore[arg-type]
    with pytest.raises(dk.DecodekitError, match=r"^DiverseBeamSearch: there must be at least as many"):
        dk.decode(MODEL, [[0]], dk.DiverseBeamSearch(10, 2), max_new_tokens=1)
