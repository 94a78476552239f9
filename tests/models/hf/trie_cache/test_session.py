"""Trie sessions: the results of row sessions on every family, and an unchanged model."""

import copy
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import decodekit as dk
from decodekit.core.history import Source
from decodekit.models.hf.trie_cache.session import TrieSession
from tests.equivalence.compare import batch
from tests.equivalence.families import ALL, ENCODER_DECODERS, FAMILIES, START, VOCAB, build

# Families whose count of positions cannot be patched.
ROWS = {"falcon-alibi", "mpt"}
# Their decoders count padding as text, and are refused where there is some.
NO_PADDING = {*ENCODER_DECODERS} - {"t5", "mt5", "umt5"}
TRIES = [family for family in ALL if family not in ROWS]


def prompts(family: str, *, padded: bool = True) -> dk.Prompt:
    """Three prompts of up to nine columns; an encoder-decoder reads them, and continues two columns."""
    pads = (0, 2, 5) if padded else (0, 0, 0)
    read = batch(pads, seed=3)
    if family not in ENCODER_DECODERS:
        return dk.Prompt(read.tokens, read.mask.bool())
    begun = torch.cat([torch.full((3, 1), START), batch((0, 0, 0), seed=5).tokens[:, :2]], 1)
    mask = torch.ones_like(begun, dtype=torch.bool)
    if padded and family not in NO_PADDING:
        begun[1:, :2] = torch.tensor([[8, START], [8, START]])
        mask[1, 0] = mask[2, 0] = False
    prompt = dk.Prompt(begun, mask)
    return prompt.with_source(Source(read.tokens.flip(1), read.mask.flip(1).bool()))


@contextmanager
def logits_of(model: Any) -> Iterator[list[Tensor]]:  # noqa: ANN401
    """The logits of the last passes, in the model's own precision, one row per row."""
    seen: list[Tensor] = []
    hook = model.register_forward_hook(lambda _, __, output: seen.append(output.logits.flatten(0, 1)))
    try:
        yield seen
    finally:
        hook.remove()


def random_steps(hf: dk.HFModel, prompt: dk.Prompt, beams: int, steps: int, seed: int) -> list[Tensor]:
    """The model's own logits after each of some random steps, in which beams move, die and multiply."""
    rng = random.Random(seed)  # noqa: S311 - a seed, no secret
    session, _ = hf.start(prompt, rows_per_prompt=beams, capacity=prompt.tokens.shape[1] + steps)
    outputs = []
    for _ in range(steps):
        tokens = torch.tensor([rng.randrange(8, VOCAB) for _ in range(3 * beams)])
        width = rng.randint(1, beams)
        sources = torch.tensor([beams * p + rng.randrange(width) for p in range(3) for _ in range(beams)])
        with logits_of(hf.model) as seen:
            session.advance(tokens, None if rng.random() < 0.2 else sources)
        outputs.append(seen[0])
    return outputs


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize("family", TRIES)
@pytest.mark.parametrize("beams", [2, 5])
def test_logits_are_those_of_rows_for_all_moves_of_beams(family: str, beams: int) -> None:
    model = build(family)
    prompt = prompts(family)
    trie, rows = (
        torch.stack(random_steps(dk.HFModel(model, cache=cache), prompt, beams, 24, seed=beams))
        for cache in ("trie", "rows")
    )
    # Weights times 20 and more make rounding 10^6 times as large. LED takes its softmax in float32.
    exact = model.dtype == torch.float64 and family != "led-window"
    assert (trie - rows).abs().max() < (1e-9 if exact else 1e-3)


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize("family", TRIES)
def test_beams_emit_the_tokens_of_a_row_cache(family: str) -> None:
    results = [
        dk.decode(
            dk.HFModel(build(family), cache=cache),
            prompts(family),
            dk.BeamSearch(4, num_return=3),
            dk.RepetitionPenalty(1.2),
            max_new_tokens=12,
            end_ids=[2, 7],
        )
        for cache in ("trie", "rows")
    ]
    assert results[0].hypotheses() == results[1].hypotheses()
    torch.testing.assert_close(results[0].score, results[1].score)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral-window", "gemma3-mixed", "bloom", "t5"])
def test_samples_emit_the_tokens_of_a_row_cache(family: str) -> None:
    results = [
        dk.decode(
            dk.HFModel(build(family), cache=cache),
            prompts(family),
            dk.Sample(4, seeds=[1, 2, 3]),
            max_new_tokens=8,
        )
        for cache in ("trie", "rows")
    ]
    assert results[0].tokens.tolist() == results[1].tokens.tolist()


@pytest.mark.parametrize("family", sorted(ROWS))
def test_an_unsupported_model_uses_rows_and_repr_says_so(family: str) -> None:
    hf = dk.HFModel(build(family))
    assert "cache=auto" in repr(hf)
    dk.decode(hf, prompts(family), dk.BeamSearch(2), max_new_tokens=2)
    assert "cache=rows (it" in repr(hf)
    with pytest.raises(
        dk.ModelError, match=r"cannot be run with cache='trie': it.*Use cache='auto', or 'rows'"
    ):
        dk.decode(
            dk.HFModel(build(family), cache="trie"), prompts(family), dk.BeamSearch(2), max_new_tokens=2
        )


def test_repr_names_the_cache() -> None:
    hf = dk.HFModel(build("gpt2"))
    dk.decode(hf, prompts("gpt2"), dk.Greedy(), max_new_tokens=2)
    assert "cache=auto" in repr(hf)  # not tested yet: with one row per prompt there is nothing to share
    session, _ = hf.start(prompts("gpt2"), rows_per_prompt=3, capacity=12)
    assert isinstance(session, TrieSession)
    assert "cache=trie" in repr(hf)
    assert repr(session) == "TrieSession(3 beams a prompt, 9 slots)"
    session.advance(torch.arange(8, 17), None)
    assert repr(session) == "TrieSession(3 beams a prompt, 12 slots)"


def test_a_cache_of_another_name_is_refused() -> None:
    with pytest.raises(dk.ModelError, match="cache must be 'auto', 'trie', 'rows' or 'none', got 'static'"):
        dk.HFModel(build("gpt2"), cache="static")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (dk.ContrastiveSearch(3, 0.5), "returning hidden states, early layers or attention needs a cache"),
        (dk.Speculative(dk.PromptLookup(), tokens=3), "verifying several tokens per pass needs a cache"),
    ],
)
def test_decoders_that_need_rows_refuse_a_trie(decoder: Any, message: str) -> None:  # noqa: ANN401
    dk.decode(dk.HFModel(build("gpt2")), [[8, 9]], decoder, max_new_tokens=2)
    with pytest.raises(dk.ModelError, match=message):
        dk.decode(dk.HFModel(build("gpt2"), cache="trie"), [[8, 9]], decoder, max_new_tokens=2)


@pytest.mark.parametrize(
    "family", ["llama", "mistral-window", "gemma3-mixed", "bloom", "t5", "bart", "m2m100"]
)
def test_the_model_is_unchanged_after_a_pass(family: str) -> None:
    model = copy.deepcopy(build(family))
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    config = copy.deepcopy(vars(model.config))
    hf = dk.HFModel(model, cache="trie")
    session, _ = hf.start(prompts(family), rows_per_prompt=3, capacity=30)
    session.advance(torch.arange(9) + 8, torch.tensor([1, 0, 0, 3, 4, 5, 8, 8, 8]))
    with pytest.raises(IndexError):
        session.advance(torch.full((9,), VOCAB), None)  # no such id
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    assert vars(model.config) == config


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bart", "gemma3-mixed"])
def test_prompts_are_evicted_and_the_others_continue(family: str) -> None:
    hf = dk.HFModel(build(family), cache="trie")
    prompt = prompts(family, padded=family not in NO_PADDING)
    whole, _ = hf.start(prompt, rows_per_prompt=3, capacity=30)
    shrunk, _ = hf.start(prompt, rows_per_prompt=3, capacity=30)
    sources = torch.tensor([1, 0, 0, 3, 5, 5, 8, 8, 6])
    for session in (whole, shrunk):
        session.advance(torch.arange(9) + 8, None)
    shrunk.keep_prompts(torch.tensor([0, 2]))
    rows = torch.tensor([0, 1, 2, 6, 7, 8])
    moved = torch.tensor([1, 0, 0, 5, 5, 3])
    for _ in range(3):
        expected = whole.advance(torch.arange(9) + 9, sources)
        actual = shrunk.advance((torch.arange(9) + 9)[rows], moved)
        torch.testing.assert_close(actual, expected[rows])


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral-window", "t5"])
def test_cache_of_gives_the_cache_of_rows(family: str) -> None:
    prompt = prompts(family, padded=False)
    caches = []
    for kind in ("trie", "rows"):
        rng = random.Random(1)  # noqa: S311 - a seed, no secret
        session, _ = dk.HFModel(build(family), cache=kind).start(prompt, rows_per_prompt=3, capacity=60)
        for _ in range(20):
            tokens = torch.tensor([rng.randrange(8, VOCAB) for _ in range(9)])
            sources = torch.tensor([3 * p + rng.randrange(2) for p in range(3) for _ in range(3)])
            session.advance(tokens, sources)
        caches.append(session.cache_of(torch.tensor([2, 2, 0, 3, 4, 5, 7, 6, 8])))
    trie, rows = (getattr(cache, "self_attention_cache", cache) for cache in caches)
    for one, other in zip(trie.layers, rows.layers, strict=True):
        columns = other.keys.shape[-2]  # of a window, only these are kept
        torch.testing.assert_close(one.keys[:, :, -columns:], other.keys)
        torch.testing.assert_close(one.values[:, :, -columns:], other.values)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral-window", "gemma3-mixed", "bloom"])
def test_many_long_samples_continue_as_rows_with_the_same_logits(family: str) -> None:
    results = []
    for cache in ("auto", "trie", "rows"):
        hf = dk.HFModel(build(family), cache=cache)
        prompt = prompts(family)
        session, logits = hf.start(prompt, rows_per_prompt=6, capacity=45)
        outputs = []
        for step in range(34):
            moves = torch.tensor([1, 0, 2, 3, 5, 5, *range(6, 18)]) if step % 3 == 0 else None
            logits = session.advance(logits.argmax(-1).add(torch.arange(18)) % VOCAB, moves)
            outputs.append(logits)
            if step == 28 and cache != "rows":
                assert ("of rows by now" in repr(session)) == (cache == "auto")
            if step == 30:
                session.keep_prompts(torch.tensor([1, 2]))
                break
        logits = session.advance(torch.arange(12) + 8, None)
        results.append(torch.cat([*outputs, logits]))
    torch.testing.assert_close(results[0], results[2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(results[1], results[2], atol=1e-4, rtol=1e-4)


def test_no_key_or_value_is_copied_in_a_step() -> None:
    hf = dk.HFModel(build("gpt2"), cache="trie")
    session, _ = hf.start(prompts("gpt2"), rows_per_prompt=4, capacity=20)
    buffers = [layer.keys.data_ptr() for layer in session._cache.content.layers]
    for _ in range(8):
        session.advance(torch.arange(12) + 8, torch.tensor([1, 0, 0, 3, 4, 5, 5, 5, 8, 9, 9, 11]))
    assert [layer.keys.data_ptr() for layer in session._cache.content.layers] == buffers
    # One entry a prompt: nine columns, and slots for the four beams of eleven steps, in whole sixteens.
    assert session._cache.content.layers[0].keys.shape[0] == 3
    assert session._cache.content.layers[0].keys.shape[2] == 64 >= 9 + 11 * 4


SIZES = {
    "vocab_size": VOCAB,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 3,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


def test_models_that_count_slots_only_in_long_runs_give_the_same() -> None:
    torch.manual_seed(0)
    # Its windows are in a table by slot, beyond the length of the probe's hypotheses.
    neo = transformers.GPTNeoConfig(
        **{name: size for name, size in SIZES.items() if "num" not in name},
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=32,
    )
    # It scales queries by the cache's length, in steps of so many columns.
    llama4 = transformers.Llama4TextConfig(
        **SIZES,
        intermediate_size=48,
        intermediate_size_mlp=48,
        num_local_experts=2,
        num_key_value_heads=2,
        head_dim=8,
        no_rope_layers=[1, 0],
        floor_scale=16,
    )
    for config in (neo, llama4):
        model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.data.mul_(10)
        results = [
            dk.decode(dk.HFModel(model, cache=cache), [[8] * 26], dk.BeamSearch(5), max_new_tokens=40)
            for cache in ("auto", "rows")
        ]
        assert results[0].hypotheses() == results[1].hypotheses()
        torch.testing.assert_close(results[0].score, results[1].score)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "bart", "llama"])
def test_threads_may_share_a_model(family: str) -> None:
    hf = dk.HFModel(build(family))
    before = {name: set(vars(module)) for name, module in hf.model.named_modules()}
    beams, work = dk.BeamSearch(4), ([[9, 10]], [[9, 10], [11, 12], [13, 14]])
    alone = [dk.decode(hf, prompts, beams, max_new_tokens=12).hypotheses() for prompts in work]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(4):
            runs = [pool.submit(dk.decode, hf, prompts, beams, max_new_tokens=12) for prompts in work]
            assert [run.result().hypotheses() for run in runs] == alone
    assert {name: set(vars(module)) for name, module in hf.model.named_modules()} == before


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "qwen2", "t5"])
def test_a_compiled_model_is_run_as_the_one_in_it(family: str) -> None:
    prompt = prompts(family)
    results = []
    for model in (build(family), torch.compile(build(family), backend="eager")):
        hf = dk.HFModel(model)
        results.append(dk.decode(hf, prompt, dk.BeamSearch(3), max_new_tokens=3).hypotheses())
        assert "cache=trie" in repr(hf)
        assert type(build(family)).__name__ in repr(hf)
    assert results[0] == results[1]


def test_every_family_is_tested() -> None:
    assert set(TRIES) | ROWS == {*FAMILIES, *ENCODER_DECODERS}
