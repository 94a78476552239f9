"""Recorded passes: the logits of the model, or no recording if a replay would skip something."""

import copy
import gc
import random
import threading
import weakref
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import decodekit as dk
from decodekit.accelerate.tape import Tape
from decodekit.models.hf.forwards import forward
from decodekit.models.hf.forwards.forward import forward_lock
from decodekit.models.hf.sessions import RowSession
from tests.equivalence.families import ENCODER_DECODERS, VOCAB, build
from tests.models.hf.trie_cache.test_session import TRIES, prompts

# Families whose positions come from the cache's length, or with data-dependent control flow.
NOT_RECORDED = {*ENCODER_DECODERS, "opt", "bloom", "biogpt"}


def walk(session: dk.Session, beams: int, steps: int, seed: int) -> Tensor:
    """The logits after random steps with beams that move, die out and multiply."""
    chance = random.Random(seed)  # noqa: S311 - a seed, no secret
    walked = []
    for _ in range(steps):
        tokens = torch.tensor([chance.randrange(8, VOCAB) for _ in range(3 * beams)])
        width = chance.randint(1, beams)
        sources = [beams * p + chance.randrange(width) for p in range(3) for _ in range(beams)]
        walked.append(session.advance(tokens, torch.tensor(sources) if beams > 1 else None))
    return torch.stack(walked)


def recorded_of(hf: dk.HFModel) -> str:
    """What `repr` says of recordings."""
    return repr(hf).rpartition("recorded=")[2].removesuffix(")")


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize("family", TRIES)
@pytest.mark.parametrize("beams", [1, 4])
def test_recorded_passes_give_the_logits_of_the_model_bit_for_bit(family: str, beams: int) -> None:
    model, steps = build(family), 40
    prompt = prompts(family)
    plain = dk.HFModel(model, cache="trie", recorded=False)
    recorded = dk.HFModel(model, recorded="auto")
    length = prompt.tokens.shape[1]
    session, _ = recorded.start(prompt, rows_per_prompt=beams, capacity=length + steps)
    got = walk(session, beams, steps, seed=1)
    if beams == 1 and getattr(model.config, "sliding_window", None):
        assert isinstance(session, RowSession)  # which keeps no more than its window
        return
    reason = recorded_of(recorded)
    if reason != "yes":
        assert family in NOT_RECORDED or "aten." in reason
        return
    # One row a prompt is run over rows where nothing is recorded: the same but for rounding.
    session, _ = plain._trie_support.start(prompt, beams, length + steps)
    assert torch.equal(got, walk(session, beams, steps, seed=1))


def test_most_families_are_recorded() -> None:
    recorded = {}
    for family in ("gpt2", "llama", "mistral-window", "gemma3-mixed", "bloom", "t5", "opt"):
        hf = dk.HFModel(build(family))
        dk.decode(hf, prompts(family), dk.BeamSearch(2), max_new_tokens=33, end_ids=())
        recorded[family] = recorded_of(hf)
    assert recorded == {
        **dict.fromkeys(("gpt2", "llama", "mistral-window", "gemma3-mixed"), "yes"),
        **dict.fromkeys(("bloom", "t5", "opt"), "no (it counts positions by its cache's length)"),
    }


def test_the_model_is_not_called_once_it_is_recorded() -> None:
    model = build("gpt2")
    hf = dk.HFModel(model, recorded=True)
    session, _ = hf.start(prompts("gpt2"), rows_per_prompt=2, capacity=60)
    walk(session, 2, 8, seed=0)
    handle = model.register_forward_hook(lambda *_: pytest.fail("the model was called"))
    walk(session, 2, 8, seed=0)
    handle.remove()


def test_a_weight_changed_during_a_run_takes_effect_at_once() -> None:
    model = copy.deepcopy(build("gpt2"))
    hf = dk.HFModel(model, recorded=True)
    session, _ = hf.start(prompts("gpt2"), rows_per_prompt=2, capacity=60)
    walk(session, 2, 8, seed=0)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.zero_()
    assert not walk(session, 2, 1, seed=0).any()


def test_prompts_are_evicted_from_a_recorded_session() -> None:
    model = build("llama")
    runs = {}
    for recorded in (True, False):
        hf = dk.HFModel(model, cache="trie", recorded=recorded)
        session: Any = hf.start(prompts("llama"), rows_per_prompt=2, capacity=60)[0]
        walk(session, 2, 8, seed=0)
        session.keep_prompts(torch.tensor([0, 2]))
        tokens = torch.tensor([9, 10, 11, 12])
        runs[recorded] = [session.advance(tokens, torch.tensor([1, 1, 2, 3])) for _ in range(8)]
    assert all(map(torch.equal, runs[True], runs[False]))


class Counting(nn.Module):
    """A module of the user's own with a side effect."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, *args: Any, **named: Any) -> Any:  # noqa: ANN401
        """Counts, and calls the other."""
        self.calls += 1
        return self.inner(*args, **named)


def spoil(model: Any, how: str) -> None:  # noqa: ANN401
    """Makes the model do something that a replay would not do."""
    layer = model.transformer.h[0]
    if how == "hook":
        layer.register_forward_hook(lambda *_: None)
    elif how == "before":
        layer.mlp.register_forward_pre_hook(lambda *_: None)
    elif how == "patched":
        layer.forward = layer.forward
    elif how == "foreign":
        layer.mlp = Counting(layer.mlp)
    else:
        model.config._attn_implementation_internal = "of_my_own"


REASONS = {
    "hook": "its transformer.h.0 has hooks",
    "before": "its transformer.h.0.mlp has hooks",
    "patched": "its transformer.h.0 has a forward of its own",
    "foreign": "its transformer.h.0.mlp is of tests.models.hf.forwards.test_pass_recorder",
}


@pytest.mark.parametrize(("how", "reason"), REASONS.items())
def test_a_model_with_parts_that_a_replay_would_skip_is_not_recorded(how: str, reason: str) -> None:
    model = copy.deepcopy(build("gpt2"))
    spoil(model, how)
    hf = dk.HFModel(model)
    dk.decode(hf, prompts("gpt2"), dk.BeamSearch(2), max_new_tokens=33, end_ids=())
    assert recorded_of(hf) == f"no ({reason})"
    if how == "foreign":
        assert model.transformer.h[0].mlp.calls > 33
        dk.decode(dk.HFModel(model, recorded=True), prompts("gpt2"), dk.Greedy(), max_new_tokens=4)
    else:
        with pytest.raises(dk.ModelError, match=f"HFModel: GPT2LMHeadModel cannot be recorded: {reason}."):
            dk.decode(dk.HFModel(model, recorded=True), prompts("gpt2"), dk.Greedy(), max_new_tokens=4)


class Choosing(nn.Module):
    """A module with data-dependent shapes, like a choice of experts."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor) -> Tensor:
        """Reads its result on the host."""
        computed: Tensor = self.inner(states)
        return computed if computed.isfinite().all() else states


Choosing.__module__ = "transformers.of_a_test"


def test_a_model_that_reads_the_device_continues_unrecorded() -> None:
    model = build("gpt2")
    plain = dk.decode(dk.HFModel(model), prompts("gpt2"), dk.BeamSearch(3), max_new_tokens=40, end_ids=())
    model = copy.deepcopy(model)
    model.transformer.h[0].mlp = Choosing(model.transformer.h[0].mlp)
    hf = dk.HFModel(model)
    out = dk.decode(hf, prompts("gpt2"), dk.BeamSearch(3), max_new_tokens=40, end_ids=())
    assert torch.equal(out.tokens, plain.tokens)
    assert recorded_of(hf) == "no (aten.is_nonzero.default reads a tensor.)"
    with pytest.raises(dk.ModelError, match=r"HFModel: a pass of GPT2LMHeadModel cannot be recorded"):
        dk.decode(dk.HFModel(model, recorded=True), prompts("gpt2"), dk.BeamSearch(3), max_new_tokens=9)


@pytest.mark.parametrize("cache", ["rows", "none"])
def test_another_cache_is_not_recorded_and_refused_on_demand(cache: Any) -> None:  # noqa: ANN401
    with pytest.raises(
        dk.ModelError,
        match=f"HFModel: recording and compiling need a trie, got cache='{cache}'",
    ):
        dk.HFModel(build("gpt2"), cache=cache, recorded=True)
    hf = dk.HFModel(build("gpt2"), cache=cache)
    dk.decode(hf, prompts("gpt2"), dk.Greedy(), max_new_tokens=33)
    assert "recorded" not in repr(hf)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(dk.ModelError, match=r"HFModel: recorded must be True, False or 'auto', got 'yes'"):
        dk.HFModel(build("gpt2"), recorded="yes")  # type: ignore[arg-type]


def test_hooks_that_transformers_leaves_are_no_obstacle() -> None:
    model = copy.deepcopy(build("llama"))
    dk.decode(dk.HFModel(model), [[9, 8]], dk.ContrastiveSearch(), max_new_tokens=2)  # looks at hidden states
    assert any(module._forward_hooks for module in model.modules())
    hf = dk.HFModel(model)
    dk.decode(hf, [[9, 8]], dk.BeamSearch(2), max_new_tokens=33, end_ids=())
    assert recorded_of(hf) == "yes"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_recorded_only_on_demand(dtype: torch.dtype) -> None:
    model = copy.deepcopy(build("llama")).to(dtype)
    hf = dk.HFModel(model)
    dk.decode(hf, [[9, 8]], dk.BeamSearch(2), max_new_tokens=33, end_ids=())
    assert recorded_of(hf) == "no (only in float32 and float64 unless asked for)"


def test_a_model_that_cannot_be_recorded_is_refused_on_demand() -> None:
    hf = dk.HFModel(build("llama"), recorded=True)
    with pytest.raises(dk.ModelError, match=r"returning hidden states.* cannot be recorded or compiled"):
        dk.decode(hf, [[9, 8]], dk.ContrastiveSearch(), max_new_tokens=2)


def test_a_short_run_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tape, "__call__", lambda _: pytest.fail("a tape was used"))
    hf = dk.HFModel(build("gpt2"))
    dk.decode(hf, prompts("gpt2"), dk.Greedy(), max_new_tokens=31, end_ids=())
    dk.decode(hf, prompts("gpt2"), dk.BeamSearch(2), max_new_tokens=31, end_ids=())


@pytest.mark.slow
def test_a_compiled_model_is_not_recorded() -> None:
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=50, n_positions=64)
    ).eval()
    hf = dk.HFModel(torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    dk.decode(hf, [[1, 2]], dk.BeamSearch(2), max_new_tokens=33, end_ids=())
    assert recorded_of(hf) == "no (it is compiled)"


@pytest.mark.parametrize("recorded", [False, True])
def test_a_finished_session_frees_its_memory(recorded: bool) -> None:  # noqa: FBT001
    hf = dk.HFModel(build("gpt2"), cache="trie", recorded=recorded)
    session: Any = hf.start(prompts("gpt2"), rows_per_prompt=2, capacity=60)[0]
    walk(session, 2, 8, seed=0)
    keys = weakref.ref(session._cache._layers[0].keys)
    gc.disable()
    try:
        del session
        assert keys() is None
    finally:
        gc.enable()


def test_growing_a_cache_frees_the_old_buffers() -> None:
    hf = dk.HFModel(build("gpt2"), recorded=True)
    session: Any = hf.start(prompts("gpt2"), rows_per_prompt=2, capacity=60)[0]
    walk(session, 2, 8, seed=0)
    old, alive = [weakref.ref(layer.keys) for layer in session._cache._layers], []
    resize = session._cache._layers[1].resize
    session._cache._layers[1].resize = lambda *sizes: (alive.append(old[0]()), resize(*sizes))
    session._tree.room = session._tree.slots  # full
    walk(session, 2, 1, seed=0)
    assert alive == [None]  # the first layer freed its buffer before the second asked for more


class ContendedLock:
    """A lock that reports when another thread has to wait for it."""

    def __init__(self) -> None:
        self._lock, self.contended = threading.RLock(), threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.contended.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_the_pass_of_another_thread_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = build("llama")
    hf, lock, found = dk.HFModel(model, recorded=True), ContendedLock(), []
    monkeypatch.setitem(forward._locks, model, lock)
    branching = hf._trie_support

    def ask() -> None:
        try:
            found.append(branching.recorder.obstacle(strict=True))
        finally:
            lock.contended.set()  # the test ends also where this thread did not wait

    with forward_lock(model):
        vars(model.lm_head)["forward"] = model.lm_head.forward  # as a pass with packed layers does
        thread = threading.Thread(target=ask)
        thread.start()
        lock.contended.wait()
        del vars(model.lm_head)["forward"]
    thread.join()
    assert found == [""]
