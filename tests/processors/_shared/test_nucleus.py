"""Banning the tail by value next to banning it by order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import TopPLogitsWarper

import decodekit as dk
from decodekit.processors._shared import nucleus
from decodekit.processors._shared.nucleus import (
    MIN_SIZE_FOR_THREADS,
    MIN_VOCAB_BY_VALUE,
    ban_by_order,
    ban_by_value,
)
from tests.processors.parity import LAWS, Call, calls

NO_TEXT = torch.tensor([[0]])


def random(rows: int, vocab: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


@LAWS
@given(calls(), st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0.0, 1.0), st.integers(0, 8))
def test_banning_by_value_is_banning_by_order(call: Call, mass: float, max_banned: int) -> None:
    _, scores = call
    before, max_banned = scores.clone(), min(max_banned, scores.shape[-1] - 1)
    assert ban_by_order(scores, mass, max_banned).tolist() == ban_by_value(scores, mass, max_banned).tolist()
    assert torch.equal(before, scores)


@pytest.mark.parametrize("mass", [0.0, 0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("scale", [0.1, 4.0])
def test_banning_by_value_is_banning_by_order_in_a_large_vocabulary(mass: float, scale: float) -> None:
    for scores in (random(2, 50_257), random(2, 10_001, 1).bfloat16().float(), random(3, 4096, 2).round()):
        wide = scale * scores
        for max_banned in (wide.shape[-1] - 1, 700):
            assert torch.equal(ban_by_order(wide, mass, max_banned), ban_by_value(wide, mass, max_banned))


@pytest.mark.parametrize("k", [1, 40, 9000])
def test_banning_by_value_is_banning_by_order_after_most_was_banned(k: int) -> None:
    scores = dk.TopK(k)(NO_TEXT, random(6, 20_000))
    assert torch.equal(ban_by_order(scores, 0.1, 19_999), ban_by_value(scores, 0.1, 19_999))


def test_banning_by_value_is_banning_by_order_where_scores_are_nan_or_infinite() -> None:
    scores = random(5, 5000)
    scores[2], scores[3, :4000] = -torch.inf, -torch.inf
    scores[0, 7], scores[1, 8], scores[3, 9] = torch.nan, torch.inf, torch.nan
    for scale in (1.0, 1e30):
        expected = ban_by_order(scale * scores, 0.2, 4999)
        torch.testing.assert_close(
            ban_by_value(scale * scores, 0.2, 4999), expected, rtol=0, atol=0, equal_nan=True
        )


def test_each_row_has_its_own_mass() -> None:
    scores, masses = random(4, 5000), torch.tensor([[0.0], [0.1], [0.5], [1.0]])
    assert torch.equal(ban_by_order(scores, masses, 4999), ban_by_value(scores, masses, 4999))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    scores = random(5, MIN_SIZE_FOR_THREADS // 4).bfloat16().float()
    assert torch.equal(ban_by_order(scores, 0.1, 10**4), ban_by_value(scores, 0.1, 10**4))


@pytest.mark.parametrize(("vocab", "by_value"), [(MIN_VOCAB_BY_VALUE - 1, 0), (MIN_VOCAB_BY_VALUE, 1)])
def test_top_p_bans_by_value_in_a_large_vocabulary(
    vocab: int, by_value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls_by_value: list[int] = []
    monkeypatch.setattr(nucleus, "ban_by_value", lambda scores, *_: calls_by_value.append(1) or scores)
    dk.TopP(0.9)(NO_TEXT, random(1, vocab))
    assert calls_by_value == [1] * by_value


def test_top_p_reads_nothing_on_meta_tensors_or_with_gradients() -> None:
    scores = torch.zeros(2, MIN_VOCAB_BY_VALUE)
    assert dk.TopP(0.9)(NO_TEXT.to("meta"), scores.to("meta")).device.type == "meta"
    assert dk.TopP(0.9)(NO_TEXT, scores.requires_grad_()).requires_grad


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_top_p_in_a_large_vocabulary_is_hugging_faces(scale: float) -> None:
    for scores in (scale * random(2, 151_936), scale * random(1, 50_257).bfloat16().float()):
        assert torch.equal(TopPLogitsWarper(0.9)(NO_TEXT, scores), dk.TopP(0.9)(NO_TEXT, scores))
