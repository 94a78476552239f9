"""Reverse models (`Channel`) and language models (`Prior`)."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing.strategies import prompts
from tests.rerank.models import Remembering, translator
from tests.rerank.texts import decoded


def test_channel_by_hand() -> None:
    model = dk.testing.MarkovModel([[0.9, 0.1], [0.4, 0.6]])
    out = dk.decode(model, [[0, 1], [1]], dk.BeamSearch(2, num_return=2), max_new_tokens=1)
    assert out.hypotheses() == [[[1], [0]], [[1], [0]]]
    found = dk.Channel(model).log_probs(out)
    # After 1: 0 and then 1; after 0 the same. And 1 after 1, after 0.
    assert [math.exp(value) for row in found for value in row] == pytest.approx([0.04, 0.09, 0.6, 0.1])


@settings(max_examples=10, deadline=None)
@given(batch=prompts(vocab=4), seed=st.integers(0, 2**31))
def test_it_is_the_reverse_model_as_a_function_of_the_text(batch: list[list[int]], seed: int) -> None:
    out = dk.decode(dk.testing.HashModel(4, seed), batch, dk.BeamSearch(3, num_return=3), max_new_tokens=2)
    reverse = dk.testing.HashModel(4, seed + 1)
    log_probs = dk.testing.next_log_probs(reverse)
    found = dk.Channel(reverse).log_probs(out)
    for number, (row, prompt) in enumerate(zip(out.hypotheses(), batch, strict=True)):
        for rank, tokens in enumerate(row):
            expected = sum(log_probs(tokens + prompt[:step])[token] for step, token in enumerate(prompt))
            # Python's double precision against single.
            assert found[number][rank] == pytest.approx(expected, rel=1e-5)


def test_a_decoder_only_model_goes_on_where_the_text_ends() -> None:
    reverse = Remembering()
    out = dk.decode(
        dk.testing.MarkovModel([[0.0, 0.3, 0.7]] * 3, end_ids=(2,)),
        [[0]],
        dk.BeamSearch(3, num_return=3),
        max_new_tokens=2,
    )
    assert sorted(out.hypotheses()[0]) == [[1, 1], [1, 2], [2]]
    dk.Channel(reverse).log_probs(out)
    assert sorted(reverse.read) == [
        [1],
        [1, 1],
        [2],
    ]  # the end alone is kept: there must be something to read


def test_a_bos_in_front_stays_in_front() -> None:
    reverse = Remembering(vocabulary=dk.Vocabulary(size=5, bos_id=4))
    out = dk.decode(
        dk.testing.MarkovModel([[0.6, 0.4, 0, 0, 0]] * 5), [[4, 1], [1]], dk.Greedy(), max_new_tokens=1
    )
    found = dk.Channel(reverse).log_probs(out)
    assert reverse.read == [[4, 0], [0]]
    log_probs = dk.testing.next_log_probs(dk.testing.HashModel(5))
    assert [row[0] for row in found] == pytest.approx([log_probs([4, 0])[1], log_probs([0])[1]], rel=1e-5)


def test_a_hypothesis_of_a_prompt_is_scored_once() -> None:
    reverse = Remembering()
    out = decoded([["a", "b", "a"], ["a"]])
    found = dk.Channel(reverse, [[1], [2]]).log_probs(out)
    assert reverse.read == [[0], [1], [0]]
    assert [len(row) for row in found] == [3, 1]
    assert found[0][0] == found[0][2] != found[1][0]


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_channel_gives_the_same_in_batches_of_any_size(batch_size: int) -> None:
    out = decoded([["a", "b", "c"], ["a"]])
    model, sources = dk.testing.HashModel(5), [[1, 2], [2]]
    halves = dk.Channel(model, sources, batch_size=batch_size).log_probs(out)
    assert dk.Channel(model, sources).log_probs(out) == halves


def test_with_sources_as_text_a_decoder_only_model_reads_texts() -> None:
    model = dk.load()
    out = decoded([["The king", "A queen"], ["The forest"]])
    sources = [" had a daughter", " was dark"]
    found = dk.Channel(model, sources).log_probs(out)
    expected = dk.score(model, ["The king", "A queen", "The forest"], [sources[0], sources[0], sources[1]])
    assert [value for row in found for value in row] == pytest.approx(
        expected.log_prob[:, 0].tolist(), abs=1e-4
    )


def test_the_prompt_may_be_made_of_the_hypothesis() -> None:
    model = dk.load()
    found = dk.Channel(model, " king", prompt=lambda text: f"{text} the").log_probs(decoded([["Then"]]))
    expected = dk.score(model, "Then the", " king").log_prob.item()
    assert found == [[pytest.approx(expected, abs=1e-4)]]
    reverse = Remembering()
    dk.Channel(reverse, [[1]], prompt=lambda ids: [3, *ids]).log_probs(decoded([["a"]]))
    assert reverse.read == [[3, 0]]


def test_an_encoder_reads_the_hypothesis_and_its_decoder_scores_the_source() -> None:
    model = translator()
    sources = [[8, 9, 10], [11]]
    out = dk.decode(model, sources, dk.BeamSearch(3, num_return=3), max_new_tokens=4)
    found = dk.Channel(model).log_probs(out)
    for row, source, values in zip(out.hypotheses(), sources, found, strict=True):
        expected = dk.score(model, row, [source] * 3).log_prob[:, 0].tolist()
        # Sources of other lengths beside it: sums in another order.
        assert values == pytest.approx(expected, abs=1e-4)


def test_an_encoder_reads_the_end_as_well() -> None:
    model = translator()
    end = model.vocabulary.end_ids[0]
    out = decoded([["a"]], ids=[[[8, end]]])
    out.finish_reason[0][0] = "end"
    expected = dk.score(model, [[8, end]], [[9]]).log_prob.item()
    assert dk.Channel(model, [[9]]).log_probs(out) == [[pytest.approx(expected, abs=1e-5)]]


def test_an_encoder_decoder_scores_its_own_end_after_a_source_of_text() -> None:
    model = translator()
    out = decoded([["w8 w9", "w30"], ["w12"]])
    found = dk.Channel(model, ["w20 w21", "w22"]).log_probs(out)
    end = model.vocabulary.end_ids[0]
    expected = dk.score(model, ["w8 w9", "w30", "w12"], [[20, 21, end], [20, 21, end], [22, end]])
    assert [value for row in found for value in row] == pytest.approx(
        expected.log_prob[:, 0].tolist(), abs=1e-4
    )


def test_channel_without_hypotheses_returns_nothing() -> None:
    assert dk.Channel(dk.testing.HashModel(3), [[1], [2]]).log_probs(decoded([["a"], []]))[1] == []


def test_missing_sources_and_texts_are_refused() -> None:
    out, model = decoded([["a"], ["b"]]), dk.testing.HashModel(3)
    with pytest.raises(dk.DecodekitError, match="the result has no prompts"):
        dk.Channel(model).log_probs(out)
    with pytest.raises(dk.DecodekitError, match="one source per prompt, got 1 sources for 2 prompts"):
        dk.Channel(model, [[1]]).log_probs(out)
    ids = dk.decode(model, [[0]], dk.Greedy(), max_new_tokens=1)
    with pytest.raises(dk.DecodekitError, match="Channel: texts need a tokenizer"):
        dk.Channel(model, ["a"]).log_probs(ids)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("gpt2",), {}, TypeError, "model must be a Model or a transformers model, got 'gpt2'"),
        ((dk.testing.HashModel,), {}, TypeError, "model must be a Model"),
        (
            (dk.testing.HashModel(3),),
            {"prompt": "Say"},
            TypeError,
            "prompt must be callable or None, got 'Say'",
        ),
        (
            (dk.testing.HashModel(3),),
            {"batch_size": 0},
            ValueError,
            "batch_size must be an integer of at least 1",
        ),
    ],
)
def test_channel_wrong_arguments_are_refused(
    arguments: Any,  # noqa: ANN401
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=f"Channel: {message}"):
        dk.Channel(*arguments, **options)


def test_prior_by_hand() -> None:
    model = dk.testing.MarkovModel([[0.9, 0.1], [0.4, 0.6]])
    out = dk.decode(model, [[0]], dk.BeamSearch(4, num_return=4), max_new_tokens=2)
    assert out.hypotheses()[0] == [[0, 0], [0, 1], [1, 1], [1, 0]]
    found = dk.Prior(model, [1]).token_log_probs(out)[0]
    expected = [[0.4, 0.9], [0.4, 0.1], [0.6, 0.6], [0.6, 0.4]]
    assert [[math.exp(value) for value in values] for values in found] == [
        pytest.approx(row) for row in expected
    ]


@settings(max_examples=12, deadline=None)
@given(batch=prompts(vocab=4), seed=st.integers(0, 2**31), data=st.data())
def test_it_is_the_model_as_a_function_of_its_own_prompt(
    batch: list[list[int]], seed: int, data: st.DataObject
) -> None:
    model = dk.testing.HashModel(4, seed, end_ids=(3,))
    out = dk.decode(model, batch, dk.BeamSearch(2, num_return=2), max_new_tokens=3)
    own = data.draw(st.sampled_from([[[1, 2]], [[number, 2] for number in range(len(batch))]]))
    log_probs = dk.testing.next_log_probs(model)
    found = dk.Prior(model, own).token_log_probs(out)
    for number, row in enumerate(out.hypotheses()):
        begin = own[number if len(own) > 1 else 0]
        for rank, tokens in enumerate(row):
            expected = [log_probs(begin + tokens[:step])[token] for step, token in enumerate(tokens)]
            assert found[number][rank] == pytest.approx(expected, rel=1e-5)  # double against single


def test_it_begins_with_its_bos() -> None:
    model = Remembering(vocabulary=dk.Vocabulary(size=5, bos_id=4))
    dk.Prior(model).token_log_probs(decoded([["a"], ["b"]]))
    assert model.read == [[4], [4]]
    with pytest.raises(dk.PromptError, match="BOS"):
        dk.Prior(Remembering()).token_log_probs(decoded([["a"]]))


def test_texts_are_scored_in_its_own_ids_with_its_own_end() -> None:
    model = dk.load()
    out = dk.decode(model, ["The king"], dk.Greedy(), max_new_tokens=3)
    found = dk.Prior(model, "Then", texts=True).token_log_probs(out)[0][0]
    ids = model.vocabulary.continuation_ids(None, [], out.texts[0][0])
    expected = dk.score(model, "Then", [ids]).token_log_probs[0, 0].tolist()
    assert found == pytest.approx(expected, abs=1e-5)
    ended = decoded([["The end"]])
    ended.finish_reason[0][0] = "end"
    assert len(dk.Prior(model, texts=True).token_log_probs(ended)[0][0]) == 1 + len(
        dk.Prior(model, texts=True).token_log_probs(decoded([["The end"]]))[0][0]
    )


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_prior_gives_the_same_in_batches_of_any_size(batch_size: int) -> None:
    out, model = decoded([["a", "b", "c"], ["a"]]), dk.testing.HashModel(5)
    halves = dk.Prior(model, [[0]], batch_size=batch_size).token_log_probs(out)
    assert dk.Prior(model, [[0]]).token_log_probs(out) == halves


def test_prior_without_hypotheses_returns_nothing() -> None:
    empty = decoded([["a"]])
    empty = replace(empty, valid=~empty.valid, texts=[[]])
    assert dk.Prior(dk.testing.HashModel(3)).token_log_probs(empty) == [[]]


def test_there_must_be_one_prompt_or_one_for_each() -> None:
    with pytest.raises(dk.DecodekitError, match="one prompt for all or one for each, got 2 for 3 prompts"):
        dk.Prior(dk.testing.HashModel(3), [[0], [1]]).token_log_probs(decoded([["a"], ["b"], ["c"]]))
    out = dk.decode(dk.testing.HashModel(3), [[0]], dk.Greedy(), max_new_tokens=1)
    with pytest.raises(dk.DecodekitError, match="Prior: texts need a tokenizer"):
        dk.Prior(dk.load(), texts=True).token_log_probs(out)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        ("gpt2", {}, TypeError, "model must be a Model or a transformers model, got 'gpt2'"),
        (
            dk.testing.HashModel(3),
            {"batch_size": 1.5},
            ValueError,
            "batch_size must be an integer of at least 1",
        ),
    ],
)
def test_prior_wrong_arguments_are_refused(
    model: Any,  # noqa: ANN401
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=f"Prior: {message}"):
        dk.Prior(model, **options)
