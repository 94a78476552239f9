import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TopHLogitsWarper

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.alone import FEW, Values, assert_each_has_its_own, batches
from tests.processors.parity import LAWS, Call, assert_same, calls

VALUES = st.sampled_from([0.25, 0.5, 0.75, 1.0]) | st.floats(0.0, 1.0, exclude_min=True)
FINITE = calls().filter(lambda call: bool((call[1] < torch.inf).all()))  # theirs raises
NO_TEXT = torch.tensor([[0]])
BANNED = -torch.inf
# Powers of two, so that probabilities and their sums are exact: 1/8, 1/2, 1/8, 1/4.
EIGHTHS = torch.tensor([[0.0, 2.0, 0.0, 1.0]]) * math.log(2)


def kept(h: float, scores: torch.Tensor) -> list[int]:
    """The ids that survive."""
    return torch.where(dk.TopH(h)(NO_TEXT, scores)[0] > BANNED)[0].tolist()


# Of 1/8, 1/2, 1/8, 1/4 the entropy is 14/8 bits, of which tokens 1 and 3 hold 4/8 each, the others 3/8.
def test_top_h_keeps_the_likeliest_tokens_that_hold_no_more_than_a_fraction_of_the_entropy() -> None:
    assert kept(0.3, EIGHTHS) == [1]
    assert kept(0.6, EIGHTHS) == [1, 3]
    assert len(kept(0.8, EIGHTHS)) == 3  # one of the two tied ones


def test_top_h_keeps_the_likeliest_token_for_any_h() -> None:
    assert kept(1e-9, EIGHTHS) == [1]


def test_top_h_grows_with_the_entropy() -> None:
    assert kept(0.5, torch.tensor([[9.0, 0.0, -1.0]])) == [0]
    assert len(kept(0.55, torch.zeros(1, 8))) == 4


def test_top_h_considers_only_the_hundred_likeliest() -> None:
    falling = torch.linspace(0, -0.5, 150)[None]
    assert kept(1.0, falling)[-1] < 100
    assert kept(0.5, falling[:, :100]) == kept(0.5, falling)


def test_top_h_leaves_the_scores_of_kept_tokens_as_they_are() -> None:
    out = dk.TopH(0.6)(NO_TEXT, EIGHTHS)
    assert [[BANNED, EIGHTHS[0, 1].item(), BANNED, EIGHTHS[0, 3].item()]] == out.tolist()


def test_top_h_leaves_banned_tokens_banned() -> None:
    assert set(kept(1.0, torch.tensor([[0.0, BANNED, -1.0]]))) <= {0, 2}
    assert kept(1.0, torch.tensor([[BANNED, 5.0, BANNED]])) == [1]


def test_top_h_keeps_an_infinite_score_alone_where_hugging_face_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # An earlier test may have imported torch._dynamo, which turns these checks off for good.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    scores = torch.tensor([[0.0, torch.inf, BANNED]])
    with pytest.raises(ValueError, match="logits"):
        TopHLogitsWarper(0.5)(NO_TEXT, scores)
    assert dk.TopH(0.5)(NO_TEXT, scores).tolist() == [[BANNED, torch.inf, BANNED]]


@pytest.mark.parametrize("h", [0, 0.0, -0.1, 1.1, 2, math.inf, -math.inf, math.nan, True, "a", None])
def test_top_h_refuses_numbers_that_are_no_fraction_of_the_entropy(h: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^TopH: h must be in \(0, 1\], got"):
        dk.TopH(h)


@pytest.mark.parametrize(
    "processor",
    [
        dk.TopH(0.1),
        dk.TopH(0.5),
        dk.TopH(1),
        lambda numbers: dk.TopH([0.15 + 0.2 * number for number in numbers]),
    ],
)
def test_top_h_keeps_the_contract_of_processors(processor: Any) -> None:  # noqa: ANN401
    check_processor(processor, max_examples=20)


@LAWS
@given(FINITE, VALUES)
def test_top_h_is_hugging_faces(call: Call, h: float) -> None:
    assert_same(TopHLogitsWarper(h), dk.TopH(h), call)


@LAWS
@given(st.integers(98, 130), VALUES, st.booleans(), st.sampled_from([0.1, 1.0, 60.0]), st.integers(0, 2**31))
def test_top_h_is_hugging_faces_in_vocabularies_above_a_hundred(
    vocab: int,
    h: float,
    tied: bool,  # noqa: FBT001
    scale: float,
    seed: int,
) -> None:
    scores = torch.randn(3, vocab, generator=torch.Generator().manual_seed(seed)) * scale
    scores = scores.round() if tied else scores
    assert_same(TopHLogitsWarper(h), dk.TopH(h), (torch.zeros(3, 1, dtype=torch.long), scores))


@FEW
@given(batches(VALUES), st.integers(0, 2**31))
def test_top_h_of_every_prompt_is_the_same_alone(case: tuple[list[list[int]], Values], seed: int) -> None:
    batch, values = case
    assert_each_has_its_own(dk.TopH, batch, values, seed)
