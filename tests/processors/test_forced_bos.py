from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import ForcedBOSTokenLogitsProcessor

import decodekit as dk
from decodekit.testing import MarkovModel, check_processor
from tests.processors.parity import LAWS, Call, assert_same, assert_same_at_every_step, calls, history_of

BANNED = -torch.inf
MODEL = MarkovModel([[0.1, 0.6, 0.3], [0.1, 0.6, 0.3], [0.1, 0.6, 0.3]])


def test_forced_bos_allows_its_token_alone_where_the_text_is_one_token_long() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0]])
    assert dk.ForcedBOS(1)(torch.tensor([[0]]), scores).tolist() == [[BANNED, 0.0, BANNED]]
    assert dk.ForcedBOS(1)(torch.tensor([[0, 0]]), scores).tolist() == scores.tolist()


def test_forced_bos_allows_its_token_even_if_it_was_banned() -> None:
    out = dk.ForcedBOS(1)(torch.tensor([[0]]), torch.tensor([[1.0, BANNED]]))
    assert out.tolist() == [[BANNED, 0.0]]


def test_forced_bos_costs_a_beam_nothing() -> None:
    out = dk.decode(MODEL, [0], dk.BeamSearch(2, scorer=dk.LogProb()), dk.ForcedBOS(2), max_new_tokens=2)
    assert out.hypotheses() == [[[2, 1]]]
    assert out.score.tolist() == [[torch.tensor(0.6).log().item()]]


def test_forced_bos_does_not_count_padding_so_that_a_batch_gives_what_each_prompt_alone_gives() -> None:
    prompts = [[0, 0, 0], [0]]
    batch = dk.decode(MODEL, prompts, dk.Greedy(), dk.ForcedBOS(2), max_new_tokens=2)
    alone = [dk.decode(MODEL, prompt, dk.Greedy(), dk.ForcedBOS(2), max_new_tokens=2) for prompt in prompts]
    assert batch.hypotheses() == [[[1, 1]], [[2, 1]]]
    assert batch.hypotheses() == [out.hypotheses()[0] for out in alone]


@pytest.mark.parametrize("bos_id", [-1, 1.0, True, "1", None, [1]])
def test_forced_bos_refuses_what_is_no_id(bos_id: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^ForcedBOS: bos_id must be an integer of at least 0, got"):
        dk.ForcedBOS(bos_id)


def test_forced_bos_refuses_an_id_outside_the_vocabulary_when_applied() -> None:
    with pytest.raises(ValueError, match=r"^ForcedBOS: token ids must be below the vocabulary size 4, got 4"):
        dk.ForcedBOS(4).process(history_of([[1]]), torch.zeros(1, 4))


@pytest.mark.parametrize("bos_id", [0, 8])
def test_forced_bos_keeps_the_contract_of_processors(bos_id: int) -> None:
    check_processor(dk.ForcedBOS(bos_id), unbans=True, max_examples=20)


@LAWS
@given(calls(), st.integers(0, 8), st.integers(0, 2**31), st.booleans())
def test_forced_bos_is_hugging_faces(call: Call, bos_id: int, seed: int, short: bool) -> None:  # noqa: FBT001
    tokens, scores = call
    call = (tokens[:, :1] if short else tokens), scores
    bos_id %= scores.shape[1]
    assert_same(ForcedBOSTokenLogitsProcessor(bos_id), dk.ForcedBOS(bos_id), call)
    assert_same_at_every_step(
        ForcedBOSTokenLogitsProcessor(bos_id), dk.ForcedBOS(bos_id), call, seed, steps=2
    )
