"""Drafts from the model's own first layers."""

import copy

import pytest
import torch

import decodekit as dk
from decodekit.models.hf.forwards.first_layers import first_layers
from decodekit.testing import HashModel
from tests.equivalence.families import FAMILIES, build, wrap

PROMPTS = [[9, 10, 11, 12], [20], [30, 31, 8]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_reads_the_first_layers_output_and_the_model_is_unchanged(family: str) -> None:
    model = build(family)
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    modules, config = dict(model.named_modules()), model.config.to_dict()
    tokens = torch.tensor([PROMPTS[0]])
    expected = model(tokens).logits
    shallow = first_layers(model, 1)
    # The same computed differently: a copy of the model without its second layer.
    skipping = copy.deepcopy(model)
    (layers,) = [
        part for part in skipping.modules() if isinstance(part, torch.nn.ModuleList) and len(part) == 2
    ]
    del layers[1]
    skipping.config.num_hidden_layers = 1
    torch.testing.assert_close(skipping(tokens, use_cache=False).logits, shallow(tokens).logits)
    assert not torch.equal(expected, shallow(tokens).logits)
    assert shallow.get_output_embeddings() is model.get_output_embeddings()
    assert {id(part) for part in shallow.parameters()} < {id(part) for part in model.parameters()}
    assert torch.equal(expected, model(tokens).logits)
    assert {name: id(part) for name, part in modules.items()} == {
        name: id(part) for name, part in model.named_modules()
    }
    assert config == model.config.to_dict()
    assert all(torch.equal(weights, before[name]) for name, weights in model.state_dict().items())


def test_its_proposals_are_accepted_and_the_result_is_the_models() -> None:
    out = dk.decode(wrap("gpt2"), PROMPTS, dk.Speculative(dk.EarlyExit(1)), max_new_tokens=20)
    assert torch.equal(dk.decode(wrap("gpt2"), PROMPTS, dk.Greedy(), max_new_tokens=20).tokens, out.tokens)
    assert isinstance(out.report, dk.Acceptance)
    assert out.report.accepted.sum() > 0
    assert wrap("gpt2").early_exit(1) is wrap("gpt2").early_exit(1)


@pytest.mark.parametrize("layer", [0, -1, 1.0, True])
def test_layer_must_be_an_integer_of_at_least_one(layer: int) -> None:
    with pytest.raises(ValueError, match="EarlyExit: layer must be an integer of at least 1"):
        dk.EarlyExit(layer)


def test_a_model_that_cannot_be_cut_is_refused() -> None:
    def run(model: dk.Model, layer: int) -> None:
        dk.decode(model, [[9]], dk.Speculative(dk.EarlyExit(layer)), max_new_tokens=3)

    with pytest.raises(dk.ModelError, match="layers must be below the 2 layers of GPT2LMHeadModel, got 2"):
        run(wrap("gpt2"), 2)
    with pytest.raises(dk.ModelError, match="only decoder-only models can draft with early layers"):
        run(wrap("t5"), 1)
    with pytest.raises(dk.ModelError, match=r"EarlyExit: the first layers of .* has no early_exit\(\)"):
        run(HashModel(99), 1)
    replaced = copy.deepcopy(build("gpt2"))
    replaced.transformer.forward = replaced.transformer.forward
    with pytest.raises(dk.ModelError, match="its forward was replaced"):
        run(dk.HFModel(replaced), 1)
    twice = copy.deepcopy(build("gpt2"))
    twice.other = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    with pytest.raises(dk.ModelError, match="cannot be cut: it has 2 lists of its 2 layers"):
        run(dk.HFModel(twice), 1)
