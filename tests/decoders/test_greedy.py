"""Greedy search."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel, check_decoder, greedy, next_log_probs
from decodekit.testing.strategies import prompts


def test_it_says_the_likeliest_token_at_every_step() -> None:
    model = MarkovModel([[0.1, 0.7, 0.2], [0.3, 0.1, 0.6], [0.4, 0.35, 0.25]])
    out = dk.decode(model, [[0]], dk.Greedy(), max_new_tokens=4)
    assert out.hypotheses() == [[[1, 2, 0, 1]]]
    torch.testing.assert_close(out.token_log_probs.exp(), torch.tensor([[[0.7, 0.6, 0.4, 0.7]]]))
    assert out.finish_reason == [["length"]]
    assert out.parents.tolist() == [[[0, 0, 0, 0]]]


def test_a_row_that_ends_is_padded_while_the_others_go_on() -> None:
    model = MarkovModel([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]], end_ids=(2,))
    out = dk.decode(model, [[1], [0]], dk.Greedy(), max_new_tokens=5, pad_id=1)
    assert out.tokens.tolist() == [[[2, 1]], [[1, 2]]]
    assert out.lengths.tolist() == [[1], [2]]
    assert out.finish_reason == [["end"], ["end"]]
    assert out.token_log_probs[0, 0, 1] == 0


def test_of_tied_tokens_the_lowest_id_wins() -> None:
    out = dk.decode(MarkovModel([[0.2, 0.4, 0.4]] * 3), [[0]], dk.Greedy(), max_new_tokens=1)
    assert out.hypotheses() == [[[1]]]


@settings(max_examples=60, deadline=None)
@given(batch=prompts(vocab=6), seed=st.integers(0, 2**31), new=st.integers(1, 6))
def test_it_equals_the_slow_reference(batch: list[list[int]], seed: int, new: int) -> None:
    model = HashModel(6, seed, end_ids=(1, 4))
    out = dk.decode(model, batch, dk.Greedy(), max_new_tokens=new)
    for number, prompt in enumerate(batch):
        expected = greedy(next_log_probs(model), prompt, {1, 4}, new)
        assert expected.tokens == out.hypotheses()[number][0]
        # Python's double precision against the run's single.
        torch.testing.assert_close(out.log_prob[number, 0].item(), expected.log_prob, atol=1e-4, rtol=1e-4)


def test_it_keeps_the_laws_of_decoders() -> None:
    check_decoder(dk.Greedy())


def test_a_row_with_every_token_banned_is_an_error_that_names_its_prompt() -> None:
    class AfterFour(dk.StatelessProcessor):
        def process(self, history: dk.History, scores: Tensor) -> Tensor:
            return scores.masked_fill(history.tokens[:, :1] == 4, -torch.inf)

    with pytest.raises(dk.DecodingError, match="every token is banned for prompt 1"):
        dk.decode(HashModel(6), [[3], [4]], dk.Greedy(), AfterFour(), max_new_tokens=3)


def test_a_finished_row_may_have_every_token_banned() -> None:
    # Every row ends after two tokens, when nothing is left that was not said.
    model = MarkovModel([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], end_ids=(2,))
    out = dk.decode(model, [[1], [0]], dk.Greedy(), dk.NoRepeatNGram(1), max_new_tokens=3)
    assert out.hypotheses() == [[[2]], [[1, 2]]]
