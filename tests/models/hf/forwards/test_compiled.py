"""Compiled passes: the tokens of the model, and the time that compiling took."""

import itertools
import re
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import decodekit as dk
from decodekit.models.hf.forwards import compiled as compiled_passes
from tests.equivalence.families import build
from tests.models.hf.trie_cache.test_session import prompts


def tiny() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=50, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config).eval()


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [dk.Greedy(), dk.BeamSearch(3), dk.Sample(2, seeds=[1, 2, 3])])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral-window"])
def test_compiled_passes_give_the_tokens_of_the_model(family: str, decoder: dk.Decoder[Any]) -> None:
    model = build(family)
    hf = dk.HFModel(model, compiled="eager")
    assert repr(hf).endswith("compiled=not yet)")
    plain, out = (
        dk.decode(each, prompts(family), decoder, max_new_tokens=12, end_ids=[2])
        for each in (dk.HFModel(model, recorded=False), hf)
    )
    assert plain.hypotheses() == out.hypotheses()
    torch.testing.assert_close(plain.score, out.score, atol=1e-9, rtol=1e-9)
    assert re.search(r"compiled=\d+\.\d s\)$", repr(hf))


@pytest.mark.slow
def test_only_new_shapes_take_time_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)  # a second passes from call to call
    monkeypatch.setattr(compiled_passes, "time", clock)
    hf = dk.HFModel(tiny(), compiled="eager")
    compiled: Any = hf._trie_support.compiled
    times = []
    for prompt in ([[1, 2]], [[1, 2]], [[1, 2], [3, 4]]):
        dk.decode(hf, prompt, dk.Greedy(), max_new_tokens=6, end_ids=())
        times.append(compiled.seconds)
    # The passes of one prompt compile once, and the passes of two prompts once more.
    assert times == [1, 1, 2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's own backend needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_the_default_backend_of_torch_compiles() -> None:
    model = tiny()
    prompt: list[list[int]] = [[1, 2, 3]]
    plain = dk.decode(dk.HFModel(model), prompt, dk.BeamSearch(2), max_new_tokens=6, end_ids=())
    out = dk.decode(dk.HFModel(model, compiled=True), prompt, dk.BeamSearch(2), max_new_tokens=6, end_ids=())
    assert torch.equal(plain.tokens, out.tokens)
    torch.testing.assert_close(plain.score, out.score, atol=1e-5, rtol=1e-5)


def test_a_captured_step_combines_with_a_compiled_pass() -> None:
    hf = dk.HFModel(tiny(), compiled="eager")
    options: dict[str, Any] = {"max_new_tokens": 12, "end_ids": ()}
    plain, captured = (
        dk.decode(hf, [[1, 2, 3]], dk.BeamSearch(2), **options, capture=capture) for capture in (False, True)
    )
    assert torch.equal(plain.tokens, captured.tokens)


def test_a_model_that_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(
        dk.ModelError, match=r"HFModel: compiled must be True, False or a backend .* got 'gcc'"
    ):
        dk.HFModel(tiny(), compiled="gcc")
    with pytest.raises(dk.ModelError, match="need a trie, got cache='rows'"):
        dk.HFModel(tiny(), compiled=True, cache="rows")
    with pytest.raises(dk.ModelError, match="the model is already compiled"):
        dk.HFModel(torch.compile(tiny(), backend="eager"), compiled=True)  # type: ignore[arg-type]
    with pytest.raises(dk.ModelError, match=r"T5.* cannot be recorded: it counts positions"):
        dk.decode(dk.HFModel(build("t5"), compiled="eager"), [[9]], dk.Greedy(), max_new_tokens=2)
