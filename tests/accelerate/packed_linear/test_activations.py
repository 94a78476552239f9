"""GELU in one operation gives what eight do."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation

import decodekit as dk
from decodekit.accelerate.packed_linear.activations import in_one, written_out
from decodekit.accelerate.packed_linear.packing import Packing
from tests.equivalence.families import build


@pytest.mark.parametrize("activation", [NewGELUActivation(), FastGELUActivation()])
def test_it_differs_by_rounding_in_float32_and_not_at_all_elsewhere(activation: Any) -> None:  # noqa: ANN401
    numbers = torch.linspace(-9, 9, 10_001)
    torch.testing.assert_close(in_one(activation)(numbers), activation(numbers), atol=1e-6, rtol=1e-6)
    for dtype in (torch.float64, torch.bfloat16):
        assert torch.equal(in_one(activation)(numbers.to(dtype)), activation(numbers.to(dtype)))


class Other(NewGELUActivation):
    """Another function, for all that is known."""


def test_only_what_is_written_out_is_found() -> None:
    patched = NewGELUActivation()
    patched.forward = patched.forward  # type: ignore[method-assign]
    known = NewGELUActivation()
    model = nn.Sequential(known, Other(), patched, nn.GELU(), nn.Linear(2, 2))
    assert written_out(model) == [known]


@pytest.mark.parametrize("packed", [True, "auto", False])
def test_a_model_uses_it_inside_only_and_not_where_nothing_is_packed(packed: Any) -> None:  # noqa: ANN401
    model = copy.deepcopy(build("gpt2")).float()
    packing = Packing(model, packed)
    packing.refresh()
    activation: Any = model.transformer.h[0].mlp.act
    with torch.no_grad(), packing.active():
        assert ("forward" in vars(activation)) == (packed is not False)
    assert "forward" not in vars(activation)
    assert packing.bytes > 0 or packed != True  # noqa: E712 - "auto" packs no layers as small as these


def test_texts_are_the_same() -> None:
    model = copy.deepcopy(build("gpt2")).float()
    said = [
        dk.decode(dk.HFModel(model, packed=packed), [[9, 8], [7]], dk.BeamSearch(3), max_new_tokens=12)
        for packed in ("auto", False)
    ]
    assert torch.equal(said[0].tokens, said[1].tokens)
    torch.testing.assert_close(said[0].score, said[1].score, atol=1e-4, rtol=1e-4)
