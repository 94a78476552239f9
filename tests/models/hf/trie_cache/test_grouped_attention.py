"""Attention over a trie: by PyTorch, or by the kernel where it was measured to be faster."""

from typing import Any

import pytest
import torch
from torch import Tensor

import decodekit as dk
from decodekit.accelerate.kernels.trie_attention import should_use_kernel
from decodekit.models.hf.trie_cache import grouped_attention as module
from tests.equivalence.families import build
from tests.models.hf.trie_cache.test_session import prompts


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Enables the kernel's path with plain PyTorch in its place; lists the shapes of its queries."""
    calls: list[tuple[int, ...]] = []
    plain = module.trie_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, **options: Any) -> Tensor:  # noqa: ANN401
        calls.append(tuple(query.shape))
        assert visible.dtype == torch.int64
        return plain(query, key, value, visible, **options)

    monkeypatch.setattr(module, "_has_kernel", lambda _: True)
    monkeypatch.setattr(module, "should_use_kernel", lambda *_: True)
    monkeypatch.setattr(module, "trie_attention", attend)
    monkeypatch.setattr(module, "_use_kernel", {})
    return calls


@pytest.mark.mostly_slow(8)
# With a mask for each kind of layer, with grouped queries, and with a query head for each key's.
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral-window", "gemma3-mixed", "gpt-neox"])
@pytest.mark.parametrize("recorded", [True, False])
def test_the_kernel_gives_the_hypotheses_of_pytorch(
    family: str,
    recorded: bool,  # noqa: FBT001
    kernel: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, layers = build(family), build(family).config.num_hidden_layers
    hf = dk.HFModel(model, cache="trie", recorded=recorded)
    by_kernel = dk.decode(hf, prompts(family), dk.BeamSearch(3), max_new_tokens=12, end_ids=())
    assert kernel
    assert all(shape[2] in {2, 3, 4} for shape in kernel)
    assert recorded or len(kernel) >= 11 * layers
    monkeypatch.undo()
    by_pytorch = dk.decode(
        dk.HFModel(model, cache="trie", recorded=False), prompts(family), dk.BeamSearch(3), max_new_tokens=12,
        end_ids=(),
    )  # fmt: skip
    assert by_kernel.hypotheses() == by_pytorch.hypotheses()
    torch.testing.assert_close(by_kernel.score, by_pytorch.score, atol=1e-9, rtol=1e-9)


def test_a_mask_with_other_values_goes_to_pytorch(kernel: list[tuple[int, ...]]) -> None:
    query, key = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4)
    with_more = torch.randn(1, 1, 3, 5)  # a bias by distance, say
    output, _ = module._attend(torch.nn.Identity(), query, key, key, with_more)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, key, attn_mask=with_more)
    torch.testing.assert_close(output, expected.transpose(1, 2))
    assert not kernel


def test_more_beams_than_bits_go_to_pytorch(kernel: list[tuple[int, ...]]) -> None:
    hf = dk.HFModel(build("llama"), cache="trie", recorded=False)
    dk.decode(hf, prompts("llama"), dk.Sample(65, seeds=[1, 2, 3]), max_new_tokens=3)
    assert all(shape[2] <= 64 for shape in kernel)


def test_the_model_has_its_own_attention_again_after_a_run(kernel: list[tuple[int, ...]]) -> None:
    model = build("gpt2")
    hf = dk.HFModel(model, cache="trie", recorded=False)
    dk.decode(hf, prompts("gpt2"), dk.BeamSearch(2), max_new_tokens=3)
    assert kernel
    assert model.config._attn_implementation == "sdpa"


def test_without_a_gpu_the_kernel_is_not_used() -> None:
    query, key = torch.randn(1, 2, 3, 16), torch.randn(1, 2, 5, 16)
    assert not should_use_kernel(query, key, key, torch.ones(1, 3, 5, dtype=torch.bool))


@pytest.mark.cuda
def test_on_a_gpu_the_kernel_is_accurate() -> None:
    query, key = (torch.randn(2, 8, n, 64, device="cuda", dtype=torch.bfloat16) for n in (5, 700))
    seen = torch.rand(2, 5, 700, device="cuda") < 0.7
    from decodekit.accelerate.kernels.trie_attention import is_accurate  # noqa: PLC0415 - needs Triton

    assert is_accurate(query, key, key, seen)
    assert should_use_kernel(query, key, key, seen) in {True, False}
