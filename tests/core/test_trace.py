import math
from typing import Any

import pandas as pd
import pytest
import torch

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel

# From 0 mostly 1, from 1 mostly 0; but 2 stays 2, so what looks worse first is better in the end.
MODEL = MarkovModel([[0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.04, 0.06, 0.9]])


class Letters:
    """A tokenizer of `a`, `b` and `c`."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        del add_special_tokens
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        del skip_special_tokens
        return "".join(chr(token + ord("a")) for token in token_ids)


def with_text() -> MarkovModel:
    """The same model, with letters."""
    model = MarkovModel([[0.1, 0.6, 0.3], [0.5, 0.3, 0.2], [0.04, 0.06, 0.9]])
    model.vocabulary = dk.Vocabulary(size=3, tokenizer=Letters())
    return model


def probabilities(choice: dk.core.trace.Choice) -> list[tuple[int, float]]:
    """The candidates and how likely they were, rounded as a person would write them down."""
    return [(candidate.token, round(math.exp(candidate.log_prob), 4)) for candidate in choice.candidates]


def test_a_run_keeps_no_trace_unless_asked() -> None:
    assert dk.decode(MODEL, [[0]], dk.Greedy(), max_new_tokens=2).trace is None


def test_greedy_search_is_traced_step_by_step() -> None:
    trace = dk.decode(MODEL, [[0]], dk.Greedy(), max_new_tokens=3, trace=2).trace
    assert trace is not None
    assert len(trace) == 3
    assert [(choice.step, choice.prompt, choice.row, choice.tokens) for choice in trace] == [
        (0, 0, 0, []),
        (1, 0, 0, [1]),
        (2, 0, 0, [1, 0]),
    ]
    assert [probabilities(choice) for choice in trace] == [
        [(1, 0.6), (2, 0.3)],
        [(0, 0.5), (1, 0.3)],
        [(1, 0.6), (2, 0.3)],
    ]


def test_beams_follow_their_parents() -> None:
    trace = dk.decode(MODEL, [[0]], dk.BeamSearch(2), max_new_tokens=4, trace=1).trace
    # 1: .6 and 2: .3; then 1 0: .30 and 2 2: .27; then 2 2 2: .243 overtakes 1 0 1: .18.
    assert [(choice.step, choice.row, choice.tokens) for choice in trace] == [
        (0, 0, []),
        (0, 1, []),
        (1, 0, [1]),
        (1, 1, [2]),
        (2, 0, [1, 0]),
        (2, 1, [2, 2]),
        (3, 0, [2, 2, 2]),
        (3, 1, [1, 0, 1]),
    ]
    assert [probabilities(choice) for choice in list(trace)[-2:]] == [[(2, 0.9)], [(0, 0.5)]]


def test_two_beams_may_have_one_parent() -> None:
    model = MarkovModel([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.4, 0.3, 0.3]])
    trace = dk.decode(model, [[0]], dk.BeamSearch(2), max_new_tokens=3, trace=1).trace
    # 1: .7 and 2: .2; then 1 0: .35 and 1 1: .21, before 2 0: .08.
    assert [choice.tokens for choice in trace if choice.step == 2] == [[1, 0], [1, 1]]


def test_every_prompt_of_a_batch_is_traced_with_its_own_rows() -> None:
    trace = dk.decode(MODEL, [[0], [0, 2]], dk.Sample(2, seeds=[1, 2]), max_new_tokens=2, trace=3).trace
    assert [(choice.step, choice.prompt, choice.row) for choice in trace] == [
        (step, prompt, row) for step in range(2) for prompt in range(2) for row in range(2)
    ]
    for choice in trace:
        last = choice.tokens[-1] if choice.tokens else [0, 2][choice.prompt]
        expected = sorted(enumerate(MODEL.log_probs[last].exp().tolist()), key=lambda pair: -pair[1])
        assert [(token, round(prob, 4)) for token, prob in expected] == probabilities(choice)


def test_a_trace_has_no_more_candidates_than_there_are_tokens() -> None:
    trace = dk.decode(MODEL, [[0]], dk.Greedy(), max_new_tokens=1, trace=50).trace
    assert [len(choice.candidates) for choice in trace] == [3]


def test_a_trace_may_be_read_again() -> None:
    trace = dk.decode(MODEL, [[0]], dk.BeamSearch(2), max_new_tokens=3, trace=2).trace
    assert list(trace) == list(trace)


def test_candidates_are_the_models_and_their_scores_the_processors() -> None:
    chain = [dk.SuppressTokens([1]), dk.Temperature(0.5)]
    [choice] = dk.decode(MODEL, [[0]], dk.Greedy(), chain, max_new_tokens=1, trace=3).trace
    assert probabilities(choice) == [(1, 0.6), (2, 0.3), (0, 0.1)]
    # The logits of this model are logarithms; twice that is what half the temperature makes of them.
    expected = [-math.inf, *(torch.tensor([0.3, 0.1]).log() * 2).tolist()]
    # The model's logarithms are rounded from double precision.
    assert [candidate.score for candidate in choice.candidates] == pytest.approx(expected, rel=1e-6)


def test_texts_are_read_where_there_is_a_tokenizer() -> None:
    trace = dk.decode(with_text(), "ca", dk.Greedy(), max_new_tokens=2, trace=2).trace
    first, second = trace
    assert (first.text, [candidate.text for candidate in first.candidates]) == ("ca", ["b", "c"])
    assert (second.text, [candidate.text for candidate in second.candidates]) == ("cab", ["a", "b"])


def test_without_a_tokenizer_there_is_no_text() -> None:
    [choice] = dk.decode(MODEL, [[0]], dk.Greedy(), max_new_tokens=1, trace=1).trace
    assert choice.text is None
    assert choice.candidates[0].text is None


def test_records_are_the_notebooks_table() -> None:
    trace = dk.decode(with_text(), "a", dk.Greedy(), max_new_tokens=2, trace=2).trace
    assert trace.records() == [
        {"Step": 0, "Prompt": 0, "Row": 0, "Input": "a", "Choice 1": "b (60.00%)", "Choice 2": "c (30.00%)"},
        {"Step": 1, "Prompt": 0, "Row": 0, "Input": "ab", "Choice 1": "a (50.00%)", "Choice 2": "b (30.00%)"},
    ]


def test_records_without_a_tokenizer_show_ids() -> None:
    trace = dk.decode(MODEL, [[0]], dk.Greedy(), max_new_tokens=2, trace=1).trace
    assert trace.records() == [
        {"Step": 0, "Prompt": 0, "Row": 0, "Input": [0], "Choice 1": "1 (60.00%)"},
        {"Step": 1, "Prompt": 0, "Row": 0, "Input": [0, 1], "Choice 1": "0 (50.00%)"},
    ]


def test_the_frame_has_a_row_a_record_and_a_column_a_choice() -> None:
    trace = dk.decode(with_text(), ["a", "c"], dk.BeamSearch(2), max_new_tokens=2, trace=2).trace
    frame = trace.to_frame()
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == ["Step", "Prompt", "Row", "Input", "Choice 1", "Choice 2"]
    assert trace.records() == frame.to_dict("records")
    assert len(frame) == 2 * 2 * 2


def test_a_trace_reads_short() -> None:
    trace = dk.decode(MODEL, [[0]], dk.Greedy(), max_new_tokens=2, trace=1).trace
    assert "steps" not in repr(trace)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_trace_ends_with_what_was_said(beams: int) -> None:
    # A hypothesis that ends at the limit was a row's text one step before, and one of its candidates.
    model, prompts, new = HashModel(6, seed=5), [[1], [2, 3]], 4
    out = dk.decode(model, prompts, dk.BeamSearch(beams), max_new_tokens=new, trace=6)
    last = [choice for choice in out.trace if choice.step == new - 1]
    for prompt, [hypothesis] in enumerate(out.hypotheses()):
        parents = [c for c in last if c.prompt == prompt and c.tokens == hypothesis[:-1]]
        assert len(parents) == 1
        assert hypothesis[-1] in [candidate.token for candidate in parents[0].candidates]


@pytest.mark.parametrize("end", [{"end_ids": 0}, {"stop": dk.EndIds(0)}, {"stop": "a"}])
def test_a_finished_row_has_no_further_choices(end: dict[str, Any]) -> None:
    # Greedy search from 0 says 1 0 1 0, from 2 says 2 2 2 2.
    trace = dk.decode(with_text(), [[0], [2]], dk.Greedy(), max_new_tokens=4, trace=1, **end).trace
    assert [(choice.prompt, choice.tokens) for choice in trace] == [
        (0, []),
        (1, []),
        (0, [1]),
        (1, [2]),
        (1, [2, 2]),
        (1, [2, 2, 2]),
    ]


@pytest.mark.parametrize("check_every", [1, 3])
def test_every_sample_has_as_many_choices_as_tokens(check_every: int) -> None:
    out = dk.decode(
        *(HashModel(6, seed=5), [[1], [2, 3]], dk.Sample(3, seeds=[1, 2])),
        stop=dk.StopWhen(lambda ids: sum(ids) > 5, ids=True),
        max_new_tokens=6,
        trace=2,
        check_every=check_every,
    )
    choices = list(out.trace)
    for prompt, row in enumerate(out.hypotheses()):
        for sample, tokens in enumerate(row):
            said = [choice.tokens for choice in choices if (choice.prompt, choice.row) == (prompt, sample)]
            assert said == [tokens[:step] for step in range(len(tokens))]
    assert len(set(out.lengths.flatten().tolist())) > 1


def test_beams_go_on_without_the_hypotheses_that_a_criterion_finished() -> None:
    stop = dk.EndIds(0)
    trace = dk.decode(MODEL, [[0]], dk.BeamSearch(2), max_new_tokens=3, stop=stop, trace=1).trace
    # 1: .6 and 2: .3; then 1 0: .30 is finished, 2 2: .27 and 1 1: .18 go on.
    assert [choice.tokens for choice in trace if choice.step == 2] == [[2, 2], [1, 1]]
