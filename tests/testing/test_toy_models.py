import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel, check_model
from decodekit.testing.strategies import prompts

LAWS = settings(max_examples=100, deadline=None, derandomize=True, database=None)

WEATHER = [[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.0, 0.5, 0.5]]
WEATHER_LOGITS = torch.tensor(WEATHER, dtype=torch.float64).log().float()
VOCAB = 7


def logits_after(model: dk.Model, text: list[int]) -> Tensor:
    """The logits of the token after a text."""
    return model.start(dk.Prompt.from_ids([text]), rows_per_prompt=1, capacity=0)[1][0]


# MarkovModel


def test_markov_model_gives_the_row_of_the_last_token() -> None:
    for last, expected in enumerate(WEATHER_LOGITS.tolist()):
        assert expected == logits_after(MarkovModel(WEATHER), [1, 2, last]).tolist()


def test_markov_model_never_says_what_has_probability_zero() -> None:
    assert logits_after(MarkovModel(WEATHER), [2])[0] == -torch.inf


def test_markov_model_widens_every_prompt_to_its_rows() -> None:
    prompt = dk.Prompt.from_ids([[0, 1], [2]])
    _, logits = MarkovModel(WEATHER).start(prompt, rows_per_prompt=2, capacity=0)
    assert WEATHER_LOGITS[[1, 1, 2, 2]].tolist() == logits.tolist()


def test_markov_model_goes_on_from_the_token_it_is_given_whatever_its_row_was() -> None:
    session, _ = MarkovModel(WEATHER).start(dk.Prompt.from_ids([[0]]), rows_per_prompt=2, capacity=0)
    logits = session.advance(torch.tensor([2, 1]), torch.tensor([1, 1]))
    assert WEATHER_LOGITS[[2, 1]].tolist() == logits.tolist()


def test_markov_model_is_solved_in_the_head() -> None:
    out = dk.decode(MarkovModel(WEATHER), [[0], [2]], dk.Greedy(), max_new_tokens=3)
    # From 0 to 0 for a half each time; from 2 to 1 for a half (the tie is the lower id's), then to 1.
    assert out.hypotheses() == [[[0, 0, 0]], [[1, 1, 1]]]
    expected = torch.tensor([[0.5**3], [0.5 * 0.75**2]])
    # Single-precision logarithms, summed, and taken back.
    torch.testing.assert_close(expected, out.log_prob.exp(), atol=1e-6, rtol=0)


def test_markov_model_ends_at_its_end_ids() -> None:
    model = MarkovModel(WEATHER, end_ids=(1,))
    assert model.vocabulary.end_ids == (1,)
    out = dk.decode(model, [[0], [2]], dk.Greedy(), max_new_tokens=3)
    assert out.finish_reason == [["length"], ["end"]]


def test_markov_model_knows_how_many_tokens_there_are() -> None:
    with pytest.raises(dk.PromptError, match=r"ids must be in \[0, 3\), and prompt 0 has 3"):
        dk.decode(MarkovModel(WEATHER), [[3]], dk.Greedy(), max_new_tokens=1)


def test_markov_model_keeps_the_contract_of_models() -> None:
    positive = [[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.1, 0.4, 0.5]]
    check_model(MarkovModel(positive), vocab=3, tolerance=0.0)


# HashModel


@LAWS
@given(prompts(VOCAB), st.integers(0, 2**31))
def test_hash_model_is_the_same_whenever_it_is_asked(batch: list[list[int]], seed: int) -> None:
    prompt = dk.Prompt.from_ids(batch)
    first, again = (HashModel(VOCAB, seed).start(prompt, rows_per_prompt=2, capacity=0)[1] for _ in range(2))
    assert first.tolist() == again.tolist()


@LAWS
@given(prompts(VOCAB, max_batch=4), st.integers(0, 2**31), st.integers(0, VOCAB - 1))
def test_hash_model_gives_a_batch_what_each_prompt_alone_gets(
    batch: list[list[int]], seed: int, junk: int
) -> None:
    model = HashModel(VOCAB, seed)
    _, logits = model.start(dk.Prompt.from_ids(batch, pad_id=junk), rows_per_prompt=1, capacity=0)
    assert [logits_after(model, text).tolist() for text in batch] == logits.tolist()


@LAWS
@given(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8), st.integers(0, 2**31), st.data())
def test_hash_model_hears_every_token(text: list[int], seed: int, data: st.DataObject) -> None:
    model = HashModel(VOCAB, seed)
    place = data.draw(st.integers(0, len(text) - 1))
    token = data.draw(st.integers(0, VOCAB - 1))
    assume(token != text[place])
    other = [*text[:place], token, *text[place + 1 :]]
    assert logits_after(model, text).tolist() != logits_after(model, other).tolist()


@LAWS
@given(st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=8), st.integers(0, 2**31))
def test_hash_model_hears_the_order_and_the_number_of_tokens(text: list[int], seed: int) -> None:
    model = HashModel(VOCAB, seed)
    assert logits_after(model, text).tolist() != logits_after(model, [*text, text[-1]]).tolist()
    assert logits_after(model, text).tolist() != logits_after(model, text[1:]).tolist()
    if text != text[::-1]:
        assert logits_after(model, text).tolist() != logits_after(model, text[::-1]).tolist()


def test_hash_models_of_different_seeds_are_different() -> None:
    assert len({tuple(logits_after(HashModel(VOCAB, seed), [1, 2]).tolist()) for seed in range(50)}) == 50


def test_a_seed_is_no_token_so_neighbouring_models_never_agree() -> None:
    found = {
        tuple(logits_after(HashModel(VOCAB, seed), [token]).tolist())
        for seed in range(9)
        for token in range(7)
    }
    assert len(found) == 9 * 7


def test_hash_model_of_a_larger_vocabulary_begins_as_the_smaller_one() -> None:
    # Every logit is a hash of the text and its own token, and of nothing else.
    small, large = HashModel(4, seed=3), HashModel(9, seed=3)
    assert logits_after(small, [1, 2]).tolist() == logits_after(large, [1, 2])[:4].tolist()


def test_hash_models_logits_are_normal_with_the_deviation_asked_for() -> None:
    logits = torch.cat([logits_after(HashModel(1000, seed, scale=3.0), [1]) for seed in range(20)]) / 3.0
    count = len(logits)
    # Five standard errors: of a mean 1, of a variance sqrt(2), of a fourth moment sqrt(96), over sqrt(n).
    assert abs(logits.mean()) < 5 / count**0.5
    assert abs(logits.var() - 1) < 5 * 2**0.5 / count**0.5
    assert abs(logits.pow(4).mean() - 3) < 5 * 96**0.5 / count**0.5
    assert logits.isfinite().all()


def test_hash_models_logits_are_what_a_model_has_to_give() -> None:
    session, logits = HashModel(VOCAB).start(dk.Prompt.from_ids([[1]]), rows_per_prompt=3, capacity=0)
    for found in (logits, session.advance(torch.tensor([1, 2, 3]), None)):
        assert found.shape == (3, VOCAB)
        assert found.dtype == torch.float32
        assert found.is_contiguous()


def test_hash_model_follows_its_source_rows() -> None:
    model = HashModel(VOCAB)
    session, _ = model.start(dk.Prompt.from_ids([[1], [2]]), rows_per_prompt=2, capacity=0)
    session.advance(torch.tensor([3, 4, 5, 6]), None)
    logits = session.advance(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 3, 2]))
    texts = [[1, 4, 0], [1, 4, 0], [2, 6, 1], [2, 5, 1]]
    assert [logits_after(model, text).tolist() for text in texts] == logits.tolist()


def test_hash_model_keeps_the_contract_of_models() -> None:
    check_model(HashModel(VOCAB), vocab=VOCAB, tolerance=0.0)


def test_both_are_models_that_describe_themselves() -> None:
    for model in (MarkovModel(WEATHER, end_ids=(2,)), HashModel(3, end_ids=(2,))):
        assert isinstance(model, dk.Model)
        assert model.vocabulary == dk.Vocabulary(size=3, end_ids=(2,))
