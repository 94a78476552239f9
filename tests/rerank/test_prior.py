"""A language model on its own (`Prior`): what it begins with, and what it must say."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing.strategies import prompts
from tests.rerank.models import Remembering
from tests.rerank.texts import decoded


def test_a_case_by_hand() -> None:
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
        for rank, said in enumerate(row):
            expected = [log_probs(begin + said[:step])[token] for step, token in enumerate(said)]
            assert found[number][rank] == pytest.approx(expected, rel=1e-5)  # double against single


def test_it_begins_with_its_bos() -> None:
    model = Remembering(vocabulary=dk.Vocabulary(size=5, bos_id=4))
    dk.Prior(model).token_log_probs(decoded([["a"], ["b"]]))
    assert model.read == [[4], [4]]
    with pytest.raises(dk.PromptError, match="BOS"):
        dk.Prior(Remembering()).token_log_probs(decoded([["a"]]))


def test_of_texts_it_says_its_own_ids_and_its_own_end() -> None:
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
def test_the_size_of_batches_changes_nothing(batch_size: int) -> None:
    out, model = decoded([["a", "b", "c"], ["a"]]), dk.testing.HashModel(5)
    halves = dk.Prior(model, [[0]], batch_size=batch_size).token_log_probs(out)
    assert dk.Prior(model, [[0]]).token_log_probs(out) == halves


def test_without_hypotheses_there_is_nothing_to_say() -> None:
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
def test_wrong_arguments_are_refused(
    model: Any,  # noqa: ANN401
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=f"Prior: {message}"):
        dk.Prior(model, **options)
