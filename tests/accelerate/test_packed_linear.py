"""Packed linear layers: the same numbers, an unchanged model, no stale weights."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

import decodekit as dk
from decodekit.accelerate import packed_linear
from decodekit.accelerate.packed_linear import MAX_ROWS, MIN_WEIGHTS, Packing, packing_works
from decodekit.models.hf.forwards.forward import find_packable
from tests.equivalence.families import build

pytestmark = pytest.mark.skipif(not packing_works(), reason="this torch has no packed linear layers")


@pytest.fixture(autouse=True)
def without_gradients_and_with_two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # on every machine
    monkeypatch.setattr(packed_linear, "memory_left", lambda: 2**40)
    with torch.no_grad():
        yield


def linear(rows: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=bias is not None)
    layer.weight.copy_(torch.tensor(rows))
    if bias is not None:
        layer.bias.copy_(torch.tensor(bias))
    return layer


def ready(model: nn.Module, wanted: Any = True) -> Packing:  # noqa: ANN401, FBT002 - as HFModel takes it
    packing = Packing(model, wanted, find_packable)
    packing.refresh()
    return packing


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=40)).eval()


def through(packing: Packing, layer: nn.Module, rows: Tensor) -> Tensor:
    with packing.active():
        output: Tensor = layer(rows)
    return output


def uses_the_copy(packing: Packing, layer: nn.Module, rows: Tensor) -> bool:
    """True if the layer multiplies with the packed copy: its weight is set to zero first."""
    weight = layer.weight.clone()
    layer.weight.zero_()
    output = through(packing, layer, rows)
    layer.weight.copy_(weight)
    return bool(output.any())


# Solved by hand.


def test_a_packed_layer_multiplies_and_adds() -> None:
    layer = linear([[1, 2, 3], [4, 5, 6]], [10, 20])
    packing = ready(layer)
    rows = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    expected = torch.tensor([[11.0, 24], [15, 31]])
    assert torch.equal(expected, through(packing, layer, rows))
    assert uses_the_copy(packing, layer, rows)


def test_without_a_bias_nothing_is_added() -> None:
    layer = linear([[1, 2, 3], [4, 5, 6]])
    assert through(ready(layer), layer, torch.tensor([[1.0, 1, 1]])).tolist() == [[6, 15]]


def test_conv1d_stores_its_weight_transposed() -> None:
    layer = Conv1D(2, 3)
    layer.weight.copy_(torch.tensor([[1.0, 4], [2, 5], [3, 6]]))
    layer.bias.copy_(torch.tensor([10.0, 20]))
    packing = ready(layer)
    assert through(packing, layer, torch.tensor([[1.0, 0, 0], [0, 1, 1]])).tolist() == [[11, 24], [15, 31]]
    assert through(packing, layer, torch.tensor([[[0.0, 0, 2]]])).tolist() == [[[16, 32]]]


# Laws.


@given(data=st.data(), conv1d=st.booleans(), bias=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_packed_layer_gives_what_the_plain_one_gives(
    data: st.DataObject, *, conv1d: bool, bias: bool
) -> None:
    width, features = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    shape = (*data.draw(st.lists(st.integers(0, 5), max_size=3)), width)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    layer: Any = Conv1D(features, width) if conv1d else nn.Linear(width, features, bias=bias)
    for parameter in layer.parameters():
        parameter.copy_(torch.randint(-9, 10, parameter.shape, generator=generator))
    # Sums of whole numbers this small are exact in any order.
    rows = torch.randint(-9, 10, (*shape[:-1], 2 * width), generator=generator).float()
    layout = data.draw(st.sampled_from(["contiguous", "sliced", "stepped", "transposed"]))
    rows = {
        "contiguous": rows[..., :width].contiguous(),
        "sliced": rows[..., width:],
        "stepped": rows[..., ::2],
        "transposed": rows[..., :width].transpose(0, -1).contiguous().transpose(0, -1),
    }[layout]
    expected = layer(rows.contiguous())  # Conv1D itself refuses some layouts
    assert torch.equal(expected, through(ready(layer), layer, rows))


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), Conv1D(5, 6)], ids=["Linear", "Conv1D"])
def test_few_rows_are_multiplied_with_the_copy_and_many_with_the_weight(layer: nn.Module) -> None:
    packing = ready(layer)
    assert uses_the_copy(packing, layer, torch.ones(6)) is True
    assert uses_the_copy(packing, layer, torch.ones(1, 6)) is True
    assert uses_the_copy(packing, layer, torch.ones(MAX_ROWS, 6)) is True
    assert uses_the_copy(packing, layer, torch.ones(MAX_ROWS // 4, 4, 6)) is True
    layer.weight.add_(1)  # now the weight and the packed copy give different results
    rows = torch.ones(MAX_ROWS + 1, 6)
    assert torch.equal(layer(rows), through(packing, layer, rows))


def test_one_thread_multiplies_one_row_with_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    layer = linear([[1, 2, 3], [4, 5, 6]])
    packing = ready(layer)
    assert uses_the_copy(packing, layer, torch.ones(2, 3))
    assert not uses_the_copy(packing, layer, torch.ones(1, 3))


def test_a_bad_input_raises_the_layers_own_error() -> None:
    layer = nn.Linear(6, 5)
    packing = ready(layer)
    for rows in (torch.ones(2, 7), torch.ones(2, 6, dtype=torch.float64), torch.ones(2, 6).bfloat16()):
        with pytest.raises(RuntimeError) as plain:
            layer(rows)
        with pytest.raises(RuntimeError) as inside:
            through(packing, layer, rows)
        assert str(plain.value) == str(inside.value)


def test_a_layer_can_be_called_with_the_name_of_its_argument() -> None:
    one, other = nn.Linear(2, 2), Conv1D(2, 2)
    packing = ready(nn.ModuleList([one, other]))
    rows = torch.ones(1, 2)
    with packing.active():
        found = one(input=rows), other(x=rows)
    torch.testing.assert_close(found, (one(rows), other(rows)))


def test_hooks_run_as_before() -> None:
    layer, seen = nn.Linear(3, 2), []
    layer.register_forward_hook(lambda _, given, output: seen.append((given[0].shape, output.shape)))
    packing = ready(layer)
    assert uses_the_copy(packing, layer, torch.ones(4, 3))
    assert seen == [((4, 3), (4, 2))]


# The model is unchanged.


def test_outside_of_active_the_model_is_unchanged() -> None:
    model = gpt2()
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    parameters = dict(model.named_parameters())
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    packing = ready(model)
    with packing.active():
        assert any("forward" in vars(module) for module in model.modules())
        model(torch.tensor([[5, 6, 7]]))
    for name, module in model.named_modules():
        assert vars(module).keys() == attributes[name].keys()
        assert all(vars(module)[key] is value for key, value in attributes[name].items())
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))  # noqa: S301 - our own
    assert torch.equal(model(torch.tensor([[5, 6]])).logits, copied(torch.tensor([[5, 6]])).logits)


def test_an_exception_inside_leaves_no_forward_behind() -> None:
    model = gpt2()
    packing = ready(model)
    with pytest.raises(KeyError, match="inside"), packing.active():
        raise KeyError("inside")
    assert not any("forward" in vars(module) for module in model.modules())


def test_nested_contexts_leave_no_forward_behind() -> None:
    model = gpt2()
    packing, other = ready(model), ready(model)
    with packing.active():
        with packing.active(), other.active():
            pass
        assert uses_the_copy(packing, model.lm_head, torch.ones(1, 32))
    assert not any("forward" in vars(module) for module in model.modules())


def test_with_gradients_the_model_learns_as_usual() -> None:
    layer = nn.Linear(3, 2)
    packing = ready(layer)
    with torch.enable_grad(), packing.active():
        layer(torch.ones(1, 3)).sum().backward()
    assert torch.equal(torch.ones(2, 3), layer.weight.grad)


def test_autocast_decides_on_the_precision_itself() -> None:
    layer = nn.Linear(3, 2)
    packing = ready(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert through(packing, layer, torch.ones(1, 3)).dtype == torch.bfloat16


def test_a_copy_of_a_packing_packs_its_own_model() -> None:
    layer = linear([[1, 2, 3], [4, 5, 6]])
    packing = ready(layer)
    for copied in (copy.deepcopy(packing), pickle.loads(pickle.dumps(packing))):  # noqa: S301 - our own
        assert packing.bytes == copied.bytes
        copied.refresh()
        assert uses_the_copy(copied, copied._model, torch.ones(1, 3))
        assert copied._model is not layer


# Memory.


def test_the_bytes_are_those_of_the_copies() -> None:
    model = gpt2()
    packing = Packing(model, True, find_packable)
    # Two layers of 32 x (96 + 32 + 128 + 128), and the head, which is the embeddings.
    weights = 4 * (2 * 32 * 384 + 61 * 32)
    assert packing.bytes == weights
    packing.refresh()
    made = [torch.ops.mkldnn._nbytes(pack.content) for pack in packing._packs.values()]
    assert packing.bytes == sum(made)
    assert packing.bytes >= weights  # oneDNN fills up blocks


def test_a_copy_takes_about_what_the_weight_takes() -> None:
    packing = ready(nn.Linear(1000, 2000))
    assert 8e6 <= packing.bytes <= 8.5e6


def test_a_weight_that_layers_share_is_packed_once() -> None:
    one, other, apart = nn.Linear(40, 30), nn.Linear(40, 30), nn.Linear(40, 30)
    other.weight = one.weight
    packing = ready(nn.ModuleList([one, other, apart]))
    assert len(packing._packs) == 2
    for layer in (one, other):
        assert uses_the_copy(packing, layer, torch.ones(2, 40))
        assert torch.allclose(layer(torch.eye(40)), through(packing, layer, torch.eye(40)))


def test_packings_of_shared_weights_hold_one_copy() -> None:
    model = gpt2()
    packing, part = ready(model), ready(model.transformer.h[0])
    whole = {id(pack) for pack in packing._packs.values()}
    assert {id(pack) for pack in part._packs.values()} < whole


def test_unused_copies_are_freed() -> None:
    layer = nn.Linear(40, 30)
    key = next(iter(ready(layer)._packs), None)
    assert key is not None
    assert key not in packed_linear._held


def test_a_tied_head_is_packed_once_and_the_embedding_still_looks_up() -> None:
    model = gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight
    assert len(ready(model)._packs) == 2 * 4 + 1


# Changed weights.


def by_method(weight: Tensor) -> None:
    weight.mul_(2)


def by_data(weight: Tensor) -> None:
    weight.data[1, 1] += 1


def by_numpy(weight: Tensor) -> None:
    weight.detach().numpy()[0, 0] += 1


def by_order(weight: Tensor) -> None:
    weight.data.copy_(weight.flip(1))  # every row keeps its sum


def by_fused_optimizer(weight: Tensor) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], 0.1, fused=True).step()


CHANGES = [by_method, by_data, by_numpy, by_order, by_fused_optimizer]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("layer", [nn.Linear(3, 2), Conv1D(2, 3)], ids=["Linear", "Conv1D"])
def test_a_weight_changed_in_place_is_packed_anew(layer: Any, change: Any) -> None:  # noqa: ANN401
    layer = copy.deepcopy(layer)
    packing = ready(layer)
    change(layer.weight)
    packing.refresh()
    rows = torch.eye(3)
    torch.testing.assert_close(layer(rows), through(packing, layer, rows))
    assert uses_the_copy(packing, layer, rows)


def test_another_tensor_in_the_same_place_is_packed_anew() -> None:
    layer = linear([[1, 2, 3], [4, 5, 6]])
    packing = ready(layer)
    layer.weight.data = torch.ones(2, 3)
    packing.refresh()
    assert through(packing, layer, torch.ones(1, 3)).tolist() == [[3, 3]]
    layer.weight = nn.Parameter(2 * torch.ones(2, 3))
    packing.refresh()
    assert through(packing, layer, torch.ones(1, 3)).tolist() == [[6, 6]]


def test_a_bias_changes_at_once() -> None:
    layer = linear([[1, 2, 3]], [0])
    packing = ready(layer)
    layer.bias.add_(5)
    assert through(packing, layer, torch.ones(1, 3)).tolist() == [[11]]


@pytest.mark.parametrize("number", [0.5, float("nan"), float("inf")])
def test_an_unchanged_weight_is_not_packed_again(number: float) -> None:
    layer = nn.Linear(300, 200)
    layer.weight[5, 6] = number
    packing = ready(layer)
    before = dict(packing._packs)
    packing.refresh()
    assert before.keys() == packing._packs.keys()
    assert all(pack is packing._packs[key] for key, pack in before.items())


def test_changes_of_inference_tensors_are_noticed() -> None:
    with torch.inference_mode():
        layer = linear([[1, 2, 3], [4, 5, 6]])
    packing = ready(layer)
    before = dict(packing._packs)
    packing.refresh()
    assert all(pack is packing._packs[key] for key, pack in before.items())
    with torch.inference_mode():
        layer.weight[0, 0] = 7
    packing.refresh()
    assert through(packing, layer, torch.ones(1, 3)).tolist() == [[12, 15]]


def test_a_model_moved_to_another_precision_is_no_longer_packed() -> None:
    layer = nn.Linear(600, 500)
    packing = ready(layer, "auto")
    assert packing.bytes > 0
    layer.double()
    packing.refresh()
    assert packing.bytes == 0
    assert through(packing, layer, torch.ones(1, 600).double()).dtype == torch.float64


# Selection of layers.


class Negated(nn.Linear):
    def forward(self, rows: Tensor) -> Tensor:  # type: ignore[override]
        return -super().forward(rows)


def with_weight_norm(layer: nn.Linear) -> nn.Module:
    with torch.enable_grad():
        return nn.utils.parametrizations.weight_norm(layer)


def with_pre_hook(layer: nn.Linear) -> nn.Module:
    layer.register_forward_pre_hook(lambda module, given: module.weight.fill_(1))  # noqa: ARG005
    return layer


def with_forward(layer: nn.Linear) -> nn.Module:
    layer.forward = lambda rows: rows  # type: ignore[method-assign]
    return layer


def with_strides(layer: nn.Linear) -> nn.Module:
    layer.weight = nn.Parameter(torch.ones(3, 2).t())
    return layer


def with_meta(layer: nn.Linear) -> nn.Module:
    return layer.to("meta")


CHANGED = [
    *(with_weight_norm, with_pre_hook, with_forward, with_strides, with_meta, nn.Linear.double),
    *(nn.Linear.bfloat16, nn.Linear.half),
]


@pytest.mark.parametrize("change", CHANGED)
def test_a_changed_layer_is_not_packed(change: Any) -> None:  # noqa: ANN401
    for packing in (
        ready(change(nn.Linear(3, 2)), "auto"),
        Packing(change(nn.Linear(3, 2)), False, find_packable),
    ):
        assert packing.bytes == 0
        assert packing._swaps == []
    with pytest.raises(dk.ModelError, match="packed=True needs linear layers in float32 on the CPU"):
        Packing(change(nn.Linear(3, 2)), True, find_packable)


def test_a_subclass_of_a_layer_is_not_packed() -> None:
    model = nn.ModuleList([Negated(3, 2), nn.Linear(3, 2)])
    packing = ready(model)
    assert len(packing._packs) == 1
    assert torch.equal(model[0](torch.eye(3)), through(packing, model[0], torch.eye(3)))


def test_a_compiled_layer_is_not_packed() -> None:
    layer = nn.Linear(3, 2)
    layer._compiled_call_impl = layer._call_impl
    with pytest.raises(dk.ModelError, match="has none"):
        Packing(layer, True, find_packable)


def test_auto_packs_only_large_layers() -> None:
    large, small = nn.Linear(512, MIN_WEIGHTS // 512), nn.Linear(512, MIN_WEIGHTS // 512 - 1)
    packing = ready(nn.ModuleList([large, small]), "auto")
    assert [key[0] for key in packing._packs] == [large.weight.data_ptr()]


@pytest.mark.parametrize(("left", "expected"), [(2, 1), (2 - 2**-20, 0)])
def test_auto_takes_at_most_half_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch, left: float, expected: int
) -> None:
    layer = nn.Linear(512, MIN_WEIGHTS // 512)
    monkeypatch.setattr(packed_linear, "memory_left", lambda: int(left * 4 * MIN_WEIGHTS))
    packing = ready(layer, "auto")
    assert len(packing._packs) == expected
    monkeypatch.setattr(packed_linear, "memory_left", lambda: 0)  # copies that exist take no new memory
    packing.refresh()
    assert len(packing._packs) == expected
    assert ready(layer, wanted=True).bytes > 0  # packed=True does not look at memory


def test_without_the_operators_true_raises_and_auto_packs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packed_linear, "packing_works", lambda: False)
    layer = nn.Linear(600, 500)
    assert ready(layer, "auto").bytes == 0
    with pytest.raises(dk.ModelError, match=r"packed=True needs oneDNN's linear layers.*Use packed='auto'"):
        Packing(layer, True, find_packable)


def test_without_onednn_nothing_is_packed() -> None:
    layer = nn.Linear(600, 500)
    # Not `flags`, which warns when it restores the old values.
    torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)
    try:
        assert ready(layer, "auto").bytes == 0
    finally:
        torch.backends.mkldnn.set_flags(_enabled=True, _fp32_precision=None)
    assert ready(layer, "auto").bytes > 0


@pytest.mark.parametrize("wanted", ["yes", None, 1, 0])
def test_packed_must_be_true_false_or_auto(wanted: Any) -> None:  # noqa: ANN401
    with pytest.raises(dk.ModelError, match="packed must be True, False or 'auto', got"):
        Packing(nn.Linear(3, 2), wanted, find_packable)


def test_str_gives_the_size() -> None:
    layer = nn.Linear(1000, 500)
    assert [str(Packing(layer, wanted, find_packable)) for wanted in (True, False)] == ["2.0 MB", "no"]


# The whole model.


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_the_tokens_are_those_of_the_plain_model(family: str) -> None:
    model: Any = copy.deepcopy(build(family)).float()
    texts = torch.tensor([[8, 9, 10, 11, 12], [13, 14, 15, 16, 17]])
    options = {"max_new_tokens": 12, "do_sample": False, "num_beams": 3, "pad_token_id": 3}
    packing = ready(model)
    assert packing.bytes > 0
    with packing.active():
        logits = model(texts, **({"decoder_input_ids": texts} if family == "t5" else {})).logits
        tokens = model.generate(texts, **options)
    plain = model(texts, **({"decoder_input_ids": texts} if family == "t5" else {})).logits
    # Rounding in float32: logits of the order of 10, of sums in another order.
    torch.testing.assert_close(logits, plain, atol=1e-3, rtol=1e-4)
    assert torch.equal(model.generate(texts, **options), tokens)
