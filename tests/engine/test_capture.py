"""A captured run gives what a plain one gives, and what cannot be captured is refused by name."""

import gc
import weakref
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import decodekit as dk
from decodekit.decoders.rows import RowState
from decodekit.engine.capture import CapturedStep
from tests.equivalence.families import build
from tests.models.hf.trie_cache.test_session import prompts

DECODERS = {
    "greedy": (dk.Greedy(), []),
    "samples": (dk.Sample(3, seeds=[1, 2, 3]), [dk.TopP(0.9), dk.RepetitionPenalty(1.2)]),
    "beams": (dk.BeamSearch(4, num_return=2), [dk.NoRepeatNGram(2), dk.DRY(multiplier=0.5)]),
    "diverse": (dk.DiverseBeamSearch(4, groups=2), []),
}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral-window"])
def test_a_captured_run_gives_what_a_plain_one_gives(family: str, name: str) -> None:
    decoder, processors = DECODERS[name]
    hf = dk.HFModel(build(family), cache="trie", recorded=False)
    options: dict[str, Any] = {"max_new_tokens": 40, "end_ids": [2, 7], "stop": dk.RepetitionLoop()}
    plain = dk.decode(hf, prompts(family), decoder, processors, **options)
    captured = dk.decode(hf, prompts(family), decoder, processors, **options, capture=True)
    assert plain.hypotheses() == captured.hypotheses()
    assert plain.finish_reason == captured.finish_reason
    torch.testing.assert_close(plain.token_log_probs, captured.token_log_probs, atol=1e-9, rtol=1e-9)
    assert torch.equal(plain.parents, captured.parents)


def test_a_generator_goes_on_where_the_plain_run_would_have_left_it() -> None:
    hf = dk.HFModel(build("gpt2"), cache="trie", recorded=False)
    said, states = [], []
    for capture in (False, True):
        generator = torch.Generator().manual_seed(5)
        sample = dk.Sample(2, generator=generator)
        out = dk.decode(hf, prompts("gpt2"), sample, max_new_tokens=20, end_ids=(), capture=capture)
        said.append(out.tokens)
        states.append(generator.get_state())
    assert torch.equal(*said)
    assert torch.equal(*states)


def test_a_traced_run_sees_every_step_of_a_captured_one() -> None:
    hf = dk.HFModel(build("gpt2"))
    plain, captured = [
        dk.decode(hf, prompts("gpt2"), dk.BeamSearch(3), max_new_tokens=12, trace=4, capture=capture)
        for capture in (False, True)
    ]
    assert plain.trace is not None
    assert list(plain.trace) == list(captured.trace or ())


def test_waves_are_captured_one_by_one() -> None:
    hf = dk.HFModel(build("gpt2"))
    plain = dk.decode(hf, prompts("gpt2"), dk.BeamSearch(2), max_new_tokens=12)
    waves = dk.decode(
        hf, prompts("gpt2"), dk.BeamSearch(2), max_new_tokens=12, capture=True, batch_tokens=100
    )
    assert plain.hypotheses() == waves.hypotheses()


class Model:
    """A model that is no CapturableModel."""

    def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> Any:  # noqa: ANN401
        """A toy's session."""
        return dk.testing.HashModel(7).start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)


def test_what_cannot_be_captured_is_refused_by_name() -> None:
    hf = dk.load()
    cases: list[tuple[Any, dk.Decoder[Any] | dk.CustomLoop, dict[str, Any], str]] = [
        (Model(), dk.Greedy(), {}, r"capture=True needs a model with start_captured\(\)"),
        (hf, dk.ContrastiveSearch(), {}, "returns logits only, but ContrastiveSearch needs"),
        (hf, dk.Greedy(), {"stop": "x"}, "cannot record StopStrings, which works on the host"),
        (
            hf,
            dk.Greedy(),
            {"stop": dk.MaxTime(9) | dk.EndIds(3)},
            "cannot record MaxTime, which works on the host",
        ),
        (hf, dk.Greedy(), {"processor": [dk.TopK(3), dk.MirostatV2(tau=3.0)]}, "cannot record MirostatV2"),
        (
            hf,
            dk.Greedy(),
            {"processor": dk.PrefixConstraint(lambda *_: [1])},
            "cannot record PrefixConstraint",
        ),
        (hf, dk.BeamSearch(2, scorer=dk.Lookahead(hf, [dk.Phrase(3)], weight=1.0, steps=1)), {}, "Lookahead"),
        (dk.HFModel(hf.model, cache="rows"), dk.Greedy(), {}, "need a trie, got cache='rows'"),
        (dk.HFModel(build("t5")), dk.Greedy(), {}, "T5.* cannot be recorded: it counts positions"),
        (dk.HFModel(build("mpt")), dk.Greedy(), {}, "cannot be recorded"),
    ]
    for model, decoder, options, message in cases:
        with pytest.raises(dk.DecodekitError, match=message):
            dk.decode(model, [[3, 4]], decoder, max_new_tokens=9, capture=True, **options)
    with pytest.raises(TypeError, match=r"BestFirst runs its own loop.*no capture"):
        dk.decode(hf, [[3]], dk.BestFirst(), max_new_tokens=3, capture=True)
    with pytest.raises(dk.DecodekitError, match=r"decode: capture must be True or False, got 'auto'"):
        dk.decode(hf, [[3]], dk.Greedy(), max_new_tokens=3, capture="auto")  # type: ignore[arg-type]


class ReadsTheDevice(dk.StatelessProcessor):
    """A processor that says nothing about what it does on the host."""

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        """Looks where the run is."""
        return scores * (1.0 if int(history.position) % 2 else 0.5)


class Counter(NamedTuple):
    """A state with a number that Python counts."""

    rows: RowState
    steps: int
    model_scores: Tensor | None = None

    @property
    def history(self) -> dk.History:
        """What was said."""
        return self.rows.history

    @property
    def done(self) -> Tensor:
        """Whether it is over."""
        return self.rows.done


class CountsInPython(dk.Decoder[Counter]):
    """A decoder of which a replay would count no further."""

    rows_per_prompt = 1

    def init(self, history: dk.History, limits: Any) -> Counter:  # noqa: ANN401
        """At nothing."""
        return Counter(RowState.start(history, limits), 0)

    def step(self, scores: Tensor, state: Counter) -> tuple[Counter, dk.Selection]:
        """The likeliest in the first steps, then the second."""
        tokens = scores.topk(2).indices[:, int(state.steps > 3)]
        rows, selection = state.rows._replace(model_scores=state.model_scores).emit(tokens, scores)
        return Counter(rows, state.steps + 1), selection

    def finalize(self, state: Counter) -> dk.Decoded:
        """As rows do."""
        return state.rows.decoded(hypotheses=1)


def test_what_is_found_out_only_when_it_runs_is_refused_too() -> None:
    toy = dk.testing.HashModel(7)
    with pytest.raises(
        dk.DecodekitError, match=r"cannot record a step of Greedy\(\) with .*Reads.* reads a tensor"
    ):
        dk.decode(toy, [[1]], dk.Greedy(), ReadsTheDevice(), max_new_tokens=9, capture=True)
    with pytest.raises(dk.DecodekitError, match=r"cannot record a step of .*: it changes 0 to 1"):
        dk.decode(toy, [[1]], CountsInPython(), max_new_tokens=9, capture=True)


class Late(NamedTuple):
    """A state with what is said a step later, and a dictionary."""

    rows: RowState
    pending: Tensor
    kept: dict[str, Tensor]
    model_scores: Tensor | None = None

    @property
    def history(self) -> dk.History:
        """What was said."""
        return self.rows.history

    @property
    def done(self) -> Tensor:
        """Whether it is over."""
        return self.rows.done


class SaysLate(dk.Decoder[Late]):
    """A decoder that hands on a tensor of its old state, and writes its dictionary in another order."""

    rows_per_prompt = 1

    def __init__(self) -> None:
        self.sums: list[float] = []

    def init(self, history: dk.History, limits: Any) -> Late:  # noqa: ANN401
        """Three is said first."""
        pending = torch.full((len(history.tokens),), 3)
        return Late(RowState.start(history, limits), pending, {"a": torch.zeros(2), "b": torch.ones(2)})

    def step(self, scores: Tensor, state: Late) -> tuple[Late, dk.Selection]:
        """What was likeliest a step ago."""
        rows, _ = state.rows._replace(model_scores=state.model_scores).emit(state.pending, scores)
        kept = {"b": state.kept["b"] + 2, "a": state.kept["a"] + 1}
        return Late(rows, scores.argmax(-1), kept), dk.Selection(state.pending, None)

    def finalize(self, state: Late) -> dk.Decoded:
        """As rows do."""
        self.sums.append(float(state.kept["a"].sum()))
        return state.rows.decoded(hypotheses=1)


def test_what_is_handed_on_from_the_old_state_is_not_overwritten() -> None:
    toy, decoder = dk.testing.HashModel(17), SaysLate()
    plain, captured = [
        dk.decode(toy, [[1], [2]], decoder, max_new_tokens=12, end_ids=(), capture=capture)
        for capture in (False, True)
    ]
    assert torch.equal(plain.tokens, captured.tokens)
    assert decoder.sums == [24.0, 24.0]


class CountsItsCalls(dk.StatelessProcessor):
    """A processor that keeps what evolves where a replay does not look."""

    def __init__(self) -> None:
        self.calls = 0

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        """Something else after some calls."""
        del history
        self.calls += 1
        return scores if self.calls < 6 else scores.roll(1, -1)


def test_a_processor_that_counts_in_python_is_refused() -> None:
    toy = dk.testing.HashModel(7)
    with pytest.raises(
        dk.DecodekitError, match=r"changes CountsItsCalls.calls = 1 to CountsItsCalls.calls = 2"
    ):
        dk.decode(toy, [[1]], dk.Greedy(), CountsItsCalls(), max_new_tokens=9, capture=True)


def test_a_captured_step_is_gone_when_it_is_over() -> None:
    toy = dk.testing.HashModel(7)
    gc.collect()
    gc.disable()
    try:
        made: list[Any] = []
        init = CapturedStep.__init__

        class Watched(CapturedStep[Any]):
            def __init__(self, *args: Any) -> None:  # noqa: ANN401
                init(self, *args)
                made.append(weakref.ref(self))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("decodekit.engine.loop.CapturedStep", Watched)
            dk.decode(toy, [[1]], dk.BeamSearch(2), max_new_tokens=9, end_ids=(), capture=True)
        assert [step() for step in made] == [None]
    finally:
        gc.enable()


@pytest.mark.cuda
@pytest.mark.parametrize("name", DECODERS)
def test_a_graph_gives_what_a_plain_run_gives(name: str) -> None:
    decoder, processors = DECODERS[name]
    hf = dk.HFModel(build("llama").to("cuda"), cache="trie")
    options: dict[str, Any] = {"max_new_tokens": 40, "end_ids": [2, 7], "stop": dk.RepetitionLoop()}
    plain = dk.decode(hf, prompts("llama"), decoder, processors, **options)
    captured = dk.decode(hf, prompts("llama"), decoder, processors, **options, capture=True)
    assert plain.hypotheses() == captured.hypotheses()
    torch.testing.assert_close(plain.score, captured.score, atol=1e-9, rtol=1e-9)
