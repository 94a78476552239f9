import pytest
import torch

import decodekit as dk
from decodekit.testing import HashModel, check_captures, check_decoder

MODEL = HashModel(6, seed=1)
BATCH = [[1], [2, 3, 4]]


@pytest.mark.parametrize("decoder", [dk.Greedy(), dk.Sample(2, seeds=[1, 2]), dk.BeamSearch(3)], ids=repr)
@pytest.mark.parametrize("number", [1, 3, 5, 9])
def test_it_is_the_limit_of_the_run(decoder: dk.Decoder[dk.RowState], number: int) -> None:
    expected = dk.decode(MODEL, BATCH, decoder, max_new_tokens=min(number, 5))
    out = dk.decode(MODEL, BATCH, decoder, stop=dk.MaxNewTokens(number), max_new_tokens=5)
    assert expected.hypotheses() == out.hypotheses()
    assert torch.equal(expected.score, out.score)
    assert {reason for row in out.finish_reason for reason in row} == {"length"}


def test_its_reason_may_be_another() -> None:
    stop = dk.MaxNewTokens(2, reason="short")
    assert dk.decode(MODEL, BATCH, dk.Greedy(), stop=stop, max_new_tokens=5).finish_reason == [["short"]] * 2
    # It outranks the limit of the run, which holds after the same token.
    assert dk.decode(MODEL, BATCH, dk.Greedy(), stop=stop, max_new_tokens=2).finish_reason == [["short"]] * 2


def test_padding_does_not_count() -> None:
    out = dk.decode(MODEL, BATCH, dk.Greedy(), stop=dk.MaxNewTokens(2), max_new_tokens=5)
    assert out.lengths.tolist() == [[2], [2]]


def test_it_keeps_the_laws() -> None:
    check_decoder(dk.BeamSearch(3), stop=dk.MaxNewTokens(3), max_examples=10)
    check_captures(dk.BeamSearch(3), stop=dk.MaxNewTokens(3))
    assert dk.MaxNewTokens(3).capturable


@pytest.mark.parametrize("number", [0, -1, 1.5, True, None])
def test_it_must_be_an_integer_of_at_least_one(number: int) -> None:
    with pytest.raises(ValueError, match="MaxNewTokens: max_new_tokens must be an integer of at least 1"):
        dk.MaxNewTokens(number)


@pytest.mark.parametrize("reason", ["", None, 5])
def test_the_reason_must_be_text(reason: str) -> None:
    with pytest.raises(ValueError, match="MaxNewTokens: reason must be text"):
        dk.MaxNewTokens(1, reason)
