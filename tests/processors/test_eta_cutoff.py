import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import EtaLogitsWarper

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.alone import FEW, Values, assert_each_has_its_own, batches
from tests.processors.parity import LAWS, Call, assert_same, calls

VALUES = st.sampled_from([0.0625, 0.25, 0.5]) | st.floats(0.0, 1.0, exclude_min=True, exclude_max=True)
COUNTS = st.just(1) | st.integers(1, 12)
FINITE = calls().filter(lambda call: bool((call[1] < torch.inf).all()))  # theirs raises
NO_TEXT = torch.tensor([[0]])
BANNED = -torch.inf
# Powers of two, so that probabilities and their sums are exact: 1/8, 1/2, 1/8, 1/4.
EIGHTHS = torch.tensor([[0.0, 2.0, 0.0, 1.0]]) * math.log(2)


def kept(epsilon: float, scores: torch.Tensor, **options: int) -> list[int]:
    """The ids that survive."""
    return torch.where(dk.EtaCutoff(epsilon, **options)(NO_TEXT, scores)[0] > BANNED)[0].tolist()


def test_eta_cutoff_is_epsilon_where_the_model_is_sure() -> None:
    # An entropy of 0.32 nats: 0.01 is less than 0.1 * exp(-0.32), so epsilon decides.
    sure = torch.tensor([[0.9, 0.0901, 0.0099]]).log()
    assert kept(0.01, sure) == [0, 1]
    assert kept(0.0098, sure) == [0, 1, 2]


def test_eta_cutoff_falls_with_the_entropy_where_the_model_is_unsure() -> None:
    # Of 4 equal tokens the entropy is log 4, so that the cutoff is sqrt(epsilon) / 4: below 1 / 4.
    assert kept(0.9, torch.zeros(1, 4)) == [0, 1, 2, 3]
    # 7/4 bits = 1.213 nats: sqrt(0.64) * exp(-1.213) = 0.238, and sqrt(0.81) * exp(-1.213) = 0.268.
    assert kept(0.64, EIGHTHS) == [1, 3]
    assert kept(0.81, EIGHTHS) == [1]


def test_eta_cutoff_keeps_the_likeliest_and_all_that_are_tied_with_it_whatever_their_probability() -> None:
    assert kept(0.999, torch.tensor([[2.0, 0.0, 2.0]])) == [0, 2]
    assert kept(0.999, EIGHTHS) == [1]


def test_eta_cutoff_keeps_min_tokens_to_keep_whatever_epsilon_says() -> None:
    assert kept(0.9, EIGHTHS, min_tokens_to_keep=2) == [1, 3]
    assert kept(0.9, EIGHTHS, min_tokens_to_keep=3) == [0, 1, 2, 3]  # two are tied
    assert kept(0.9, EIGHTHS, min_tokens_to_keep=9) == [0, 1, 2, 3]


def test_eta_cutoff_leaves_the_scores_of_kept_tokens_as_they_are() -> None:
    out = dk.EtaCutoff(0.64)(NO_TEXT, EIGHTHS)
    assert [[BANNED, EIGHTHS[0, 1].item(), BANNED, EIGHTHS[0, 3].item()]] == out.tolist()


def test_eta_cutoff_allows_nothing_that_was_banned() -> None:
    assert kept(0.5, torch.tensor([[0.0, BANNED, BANNED]]), min_tokens_to_keep=2) == [0]


def test_eta_cutoff_bans_nothing_beside_an_infinite_score_where_hugging_face_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # An earlier test may have imported torch._dynamo, which turns these checks off for good.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    scores = torch.tensor([[torch.inf, 0.0, BANNED]])
    with pytest.raises(ValueError, match="logits"):
        EtaLogitsWarper(0.5)(NO_TEXT, scores)
    assert scores.tolist() == dk.EtaCutoff(0.5)(NO_TEXT, scores).tolist()


@pytest.mark.parametrize("epsilon", [0, 1, 0.0, 1.0, -0.1, 2, math.inf, -math.inf, math.nan, True, "a", None])
def test_eta_cutoff_refuses_what_is_not_between_zero_and_one(
    epsilon: Any,  # noqa: ANN401
) -> None:
    with pytest.raises(ValueError, match=r"^EtaCutoff: epsilon must be strictly between 0 and 1, got"):
        dk.EtaCutoff(epsilon)


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "3", None])
def test_eta_cutoff_refuses_to_keep_less_than_one_token(count: Any) -> None:  # noqa: ANN401
    message = r"^EtaCutoff: min_tokens_to_keep must be an integer of at least 1, got"
    with pytest.raises(ValueError, match=message):
        dk.EtaCutoff(0.5, min_tokens_to_keep=count)


@pytest.mark.parametrize(
    "processor",
    [
        dk.EtaCutoff(0.01),
        dk.EtaCutoff(0.3),
        dk.EtaCutoff(0.9, min_tokens_to_keep=3),
        lambda numbers: dk.EtaCutoff([0.15 + 0.2 * number for number in numbers]),
    ],
)
def test_eta_cutoff_keeps_the_contract_of_processors(processor: Any) -> None:  # noqa: ANN401
    check_processor(processor, max_examples=20)


@LAWS
@given(FINITE, VALUES, COUNTS)
def test_eta_cutoff_is_hugging_faces(call: Call, epsilon: float, count: int) -> None:
    theirs = EtaLogitsWarper(epsilon, min_tokens_to_keep=count)
    assert_same(theirs, dk.EtaCutoff(epsilon, min_tokens_to_keep=count), call)


def at_the_cutoff(epsilon: float) -> float:
    """The odds of a token, of two, that is exactly as likely as the cutoff: p exp(H) = sqrt(epsilon)."""
    low, high = 0.0, 0.5
    while low < (p := (low + high) / 2) < high:
        entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
        low, high = (p, high) if p * math.exp(entropy) < math.sqrt(epsilon) else (low, p)
    return p / (1 - p)


@LAWS
@given(st.floats(0.35, 0.95))
def test_eta_cutoff_is_hugging_faces_where_a_probability_is_nearly_the_cutoff(epsilon: float) -> None:
    near = math.log(at_the_cutoff(epsilon)) + torch.arange(-32, 32) * 2**-24
    scores = torch.stack([near, torch.zeros(64)], 1)
    tokens = torch.zeros(64, 1, dtype=torch.long)
    assert_same(EtaLogitsWarper(epsilon), dk.EtaCutoff(epsilon), (tokens, scores))
    assert 0 < (dk.EtaCutoff(epsilon)(tokens, scores)[:, 0] > BANNED).sum() < 64


@FEW
@given(batches(VALUES), st.integers(0, 2**31))
def test_eta_cutoff_of_every_prompt_is_what_it_is_alone(
    case: tuple[list[list[int]], Values], seed: int
) -> None:
    batch, values = case
    assert_each_has_its_own(dk.EtaCutoff, batch, values, seed)
