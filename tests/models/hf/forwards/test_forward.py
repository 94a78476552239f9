"""Packable modules: linear layers, and GELUs that one operation replaces."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation
from transformers.pytorch_utils import Conv1D

import decodekit as dk
from decodekit.accelerate.packed_linear import LinearLayer, Packable, Packing, fused_gelu
from decodekit.models.hf.forwards.forward import find_packable
from tests.equivalence.families import build


@pytest.mark.parametrize("activation", [NewGELUActivation(), FastGELUActivation()])
def test_a_fused_gelu_differs_by_rounding_and_only_in_float32(activation: Any) -> None:  # noqa: ANN401
    numbers = torch.linspace(-9, 9, 10_001)
    torch.testing.assert_close(fused_gelu(activation)(numbers), activation(numbers), atol=1e-6, rtol=1e-6)
    for dtype in (torch.float64, torch.bfloat16):
        assert torch.equal(fused_gelu(activation)(numbers.to(dtype)), activation(numbers.to(dtype)))


class Other(NewGELUActivation):
    """A subclass, which may compute another function."""


def test_plain_linear_layers_and_written_out_gelus_are_found() -> None:
    patched = NewGELUActivation()
    patched.forward = patched.forward  # type: ignore[method-assign]
    known = NewGELUActivation()
    linear, conv1d = nn.Linear(2, 2), Conv1D(2, 2)
    model = nn.Sequential(known, Other(), patched, nn.GELU(), linear, conv1d)
    assert find_packable(model) == Packable([LinearLayer(linear, False), LinearLayer(conv1d, True)], [known])


@pytest.mark.parametrize("packed", [True, "auto", False])
def test_gelus_are_fused_only_within_active_and_only_if_layers_may_be_packed(packed: Any) -> None:  # noqa: ANN401
    model = copy.deepcopy(build("gpt2")).float()
    packing = Packing(model, packed, find_packable)
    packing.refresh()
    activation: Any = model.transformer.h[0].mlp.act
    with torch.no_grad(), packing.active():
        assert ("forward" in vars(activation)) == (packed is not False)
    assert "forward" not in vars(activation)
    assert packing.bytes > 0 or packed != True  # noqa: E712 - "auto" packs no layers as small as these


def test_tokens_are_the_same() -> None:
    model = copy.deepcopy(build("gpt2")).float()
    results = [
        dk.decode(dk.HFModel(model, packed=packed), [[9, 8], [7]], dk.BeamSearch(3), max_new_tokens=12)
        for packed in ("auto", False)
    ]
    assert torch.equal(results[0].tokens, results[1].tokens)
    torch.testing.assert_close(results[0].score, results[1].score, atol=1e-4, rtol=1e-4)
