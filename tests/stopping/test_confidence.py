import pytest
import torch
from transformers.generation.stopping_criteria import ConfidenceCriteria

import decodekit as dk
from decodekit.testing import MarkovModel, check_captures, check_decoder

MODEL = MarkovModel([[0.1, 0.9, 0.0], [0.6, 0.0, 0.4], [0.5, 0.5, 0.0]])  # 0 -> 1: .9, 1 -> 0: .6


def test_the_first_unlikely_token_is_the_last() -> None:
    out = dk.decode(MODEL, [[0], [1]], dk.Greedy(), stop=dk.Confidence(0.7), max_new_tokens=5)
    assert out.hypotheses() == [[[1, 0]], [[0]]]
    assert out.finish_reason == [["confidence"], ["confidence"]]
    sure = dk.decode(MODEL, [[0]], dk.Greedy(), stop=dk.Confidence(0.55), max_new_tokens=5)
    assert (sure.lengths.item(), sure.finish_reason) == (5, [["length"]])


def test_a_token_as_likely_as_the_threshold_is_likely_enough() -> None:
    out = dk.decode(MODEL, [[2]], dk.Greedy(), stop=dk.Confidence(0.5), max_new_tokens=1)
    assert out.finish_reason == [["length"]]


def test_the_probability_is_the_models_and_not_the_processors() -> None:
    out = dk.decode(
        MODEL, [[0]], dk.Greedy(), dk.SuppressTokens([1]), stop=dk.Confidence(0.2), max_new_tokens=5
    )
    assert out.hypotheses() == [[[0]]]  # the only one left, and the model gives it .1
    cold = dk.decode(
        MODEL, [[1]], dk.Greedy(), dk.Temperature(0.01), stop=dk.Confidence(0.7), max_new_tokens=5
    )
    assert cold.hypotheses() == [[[0]]]


def test_under_beam_search_it_is_the_newest_tokens_probability() -> None:
    search = dk.BeamSearch(2, num_return=2, scorer=dk.LogProb())
    out = dk.decode(MODEL, [[1]], search, dk.Temperature(3.0), stop=dk.Confidence(0.5), max_new_tokens=3)
    # 2 has .4 and is the end of it; 0 1 0 with .6, .9 and .6.
    assert [2] in out.hypotheses()[0]
    for tokens, reason in zip(out.hypotheses()[0], out.finish_reason[0], strict=True):
        text = [1, *tokens]
        probabilities = [
            MODEL.log_probs[last, token].exp().item() for last, token in zip(text, tokens, strict=False)
        ]
        assert all(probability >= 0.5 for probability in probabilities[:-1])
        assert (probabilities[-1] < 0.5) == (reason == "confidence")


def test_for_one_row_it_equals_hugging_face() -> None:
    generator = torch.Generator().manual_seed(3)
    history = dk.History(
        torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool), torch.tensor(1)
    )
    results = []
    for token in range(9):
        logits = torch.randn(1, 9, generator=generator)
        last = torch.tensor([token])
        expected = ConfidenceCriteria(0.1)(last[None], (logits,))
        rows, _ = dk.Confidence(0.1).apply(history.append(last), logits.log_softmax(-1)[:, token], ())
        assert rows.tolist() == [expected]
        results.append(expected)
    assert set(results) == {True, False}


@pytest.mark.slow
def test_it_keeps_the_laws() -> None:
    for decoder in (dk.Greedy(), dk.BeamSearch(3)):
        check_decoder(decoder, stop=dk.Confidence(0.3), max_examples=10)
    check_captures(dk.BeamSearch(3), stop=dk.Confidence(0.3))


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 1.5, float("nan"), True, "0.5", None])
def test_the_threshold_must_be_a_probability_between_zero_and_one(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"Confidence: threshold must be in \(0, 1\)"):
        dk.Confidence(threshold)
