"""The random models have what the comparisons are about."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import decodekit as dk
from tests.equivalence.compare import batch, ours
from tests.equivalence.families import END, ENDS, FAMILIES, POSITIONS, VOCAB, WINDOW, build

pytestmark = pytest.mark.mostly_slow(16)

WINDOWED = ("mistral-window", "gemma2-mixed", "gemma3-mixed")


def logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, -1]


@pytest.mark.parametrize("family", FAMILIES)
def test_distributions_have_favourites_and_are_not_one_token(family: str) -> None:
    tokens = batch((0,)).tokens
    log_probs = torch.stack([logits(build(family), tokens[:, :n]) for n in range(1, 10)]).log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean().item()
    assert 0.5 < entropy < 0.85 * torch.tensor(VOCAB).log().item()


@pytest.mark.parametrize("family", WINDOWED)
def test_a_text_longer_than_the_window_reads_differently_with_a_wider_one(family: str) -> None:
    model, kind = build(family), FAMILIES[family]
    config = deepcopy(model.config)
    config.sliding_window = POSITIONS
    wide = AutoModelForCausalLM.from_config(config, attn_implementation=kind.attention).to(kind.dtype).eval()
    wide.load_state_dict(model.state_dict())
    tokens = batch((0,), length=WINDOW + 1).tokens
    assert torch.equal(logits(wide, tokens[:, 1:]), logits(model, tokens[:, 1:]))
    assert not torch.equal(logits(wide, tokens), logits(model, tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_end_and_do_not_end_and_change_places(family: str) -> None:
    runs = [
        ours(family, batch(seed=seed), dk.BeamSearch(5, num_return=5), end_ids=end_ids)
        for seed in range(2)
        for end_ids in ((END,), ENDS)
    ]
    reasons = {reason for out in runs for row in out.finish_reason for reason in row}
    assert {"end", "length"} == reasons
    # Some hypothesis was continued on another row than before; -1 stands past an end.
    moves = [(out.parents[..., 1:] != out.parents[..., :-1]) & (out.parents[..., 1:] >= 0) for out in runs]
    assert all(moved.any() for moved in moves)
