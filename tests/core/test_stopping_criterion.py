"""The contract of criteria, for every criterion and every decoder."""

from collections import Counter
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

import decodekit as dk
from decodekit.decoders.beam import step
from decodekit.testing import HashModel, MarkovModel, beam_search, check_decoder, next_log_probs
from decodekit.testing.strategies import prompts

LAWS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


class EmittedTwice(dk.StoppingCriterion):
    """A row is finished when it emits a token for the second time; it reads the newest token only."""

    def __init__(self, token: int) -> None:
        self.token = token

    reason = "twice"

    def init(self, history: dk.History, run: dk.StoppingContext) -> Int64[Tensor, " rows"]:  # noqa: ARG002
        return torch.zeros(len(history.tokens), dtype=torch.long, device=history.tokens.device)

    def apply(
        self,
        history: dk.History,
        log_probs: Float32[Tensor, " rows"],  # noqa: ARG002
        memory: Int64[Tensor, " rows"],
    ) -> tuple[Bool[Tensor, " rows"], Int64[Tensor, " rows"]]:
        count = memory + (history.last() == self.token)
        return count >= 2, count


class Budget(dk.StoppingCriterion):
    """A row is finished when its log-probability, summed in its memory, falls below a budget."""

    def __init__(self, budget: float) -> None:
        self.budget = budget

    reason = "spent"

    def init(self, history: dk.History, run: dk.StoppingContext) -> dict[str, Any]:  # noqa: ARG002
        zeros = torch.zeros(len(history.tokens), 2, device=history.tokens.device)
        return {"sum": [zeros], "step": torch.zeros((), device=zeros.device), "name": "spent"}

    def apply(
        self,
        history: dk.History,  # noqa: ARG002
        log_probs: Float32[Tensor, " rows"],
        memory: dict[str, Any],
    ) -> tuple[Bool[Tensor, " rows"], dict[str, Any]]:
        assert memory["name"] == "spent"
        total = memory["sum"][0] + log_probs[:, None]
        return total[:, 0] < self.budget, {"sum": [total], "step": memory["step"] + 1, "name": "spent"}


class Call(NamedTuple):
    rows: int
    values: int
    prompts: list[int]


class Recorder(dk.StoppingCriterion):
    """Never finishes a row, and records its calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.runs: list[dk.StoppingContext] = []

    reason = "never"

    def init(self, history: dk.History, run: dk.StoppingContext) -> tuple[()]:  # noqa: ARG002
        self.runs.append(run)
        return ()

    def apply(
        self, history: dk.History, log_probs: Float32[Tensor, " rows"], memory: tuple[()]
    ) -> tuple[Bool[Tensor, " rows"], tuple[()]]:
        self.calls.append(Call(len(history.tokens), len(log_probs), history.owners.prompts.tolist()))
        return torch.zeros(len(history.tokens), dtype=torch.bool), memory


def decoders() -> list[dk.Decoder[Any]]:
    return [dk.Greedy(), dk.BeamSearch(3, num_return=2), dk.BeamSearch(2, stop_rule=dk.Proved())]


# The calls of the loop


@pytest.mark.parametrize("decoder", [dk.Greedy(), dk.Sample(3, seeds=[1, 2]), dk.BeamSearch(3)])
def test_every_call_has_one_row_per_hypothesis(decoder: dk.Decoder[Any]) -> None:
    recorder = Recorder()
    dk.decode(HashModel(6), [[1], [2, 3]], decoder, stop=recorder, max_new_tokens=4, end_ids=(0, 2))
    rows = decoder.rows_per_prompt
    assert recorder.calls
    assert {(call.rows, call.values) for call in recorder.calls} == {(2 * rows, 2 * rows)}
    assert {tuple(call.prompts) for call in recorder.calls} == {(0,) * rows + (1,) * rows}


def test_a_criterion_is_given_the_vocabulary_and_the_start_of_the_run() -> None:
    model, recorder = HashModel(6), Recorder()
    dk.decode(model, [[1]], dk.Greedy(), stop=recorder, max_new_tokens=4)
    [run] = recorder.runs
    assert run.vocabulary is model.vocabulary
    assert run.started > 0


@pytest.mark.parametrize("wrong", [True, None, "yes", torch.tensor(True), torch.zeros(2)])
def test_criteria_must_return_one_boolean_per_row(wrong: Any) -> None:  # noqa: ANN401
    class Wrong(dk.StoppingCriterion):
        reason = "wrong"

        def init(self, history: dk.History, run: dk.StoppingContext) -> tuple[()]:  # noqa: ARG002
            return ()

        def apply(self, history: dk.History, log_probs: Tensor, memory: tuple[()]) -> Any:  # noqa: ANN401, ARG002
            return wrong, memory

    for decoder in (dk.Greedy(), dk.BeamSearch(1)):
        with pytest.raises(dk.DecodekitError, match="criterion must return one boolean per row"):
            dk.decode(HashModel(5), [[1], [2]], decoder, stop=Wrong(), max_new_tokens=2)


def test_a_criterion_needs_a_reason() -> None:
    class Nameless(dk.StoppingCriterion):
        def init(self, history: dk.History, run: dk.StoppingContext) -> tuple[()]:  # noqa: ARG002
            return ()

        def apply(self, history: dk.History, log_probs: Tensor, memory: tuple[()]) -> Any:  # noqa: ANN401, ARG002
            return torch.ones(len(history.tokens), dtype=torch.bool), memory

    with pytest.raises(TypeError, match="reason"):
        Nameless()  # type: ignore[abstract]


def test_by_default_a_criterion_cuts_nothing_and_holds_nothing_back() -> None:
    criterion = EmittedTwice(1)
    assert criterion.trim("text", "tex", fired=True) is None
    assert criterion.held_back("text") == 0
    assert criterion.capturable


# Greedy search and sampling


@pytest.mark.slow
@LAWS
@given(batch=prompts(vocab=4), seed=st.integers(0, 2**31))
def test_a_row_ends_with_the_token_that_finished_it(batch: list[list[int]], seed: int) -> None:
    model, seeds = HashModel(4, seed), [seed % 100 + number for number in range(len(batch))]
    for decoder in (dk.Greedy(), dk.Sample(2, seeds=seeds)):
        free = dk.decode(model, batch, decoder, max_new_tokens=9)
        out = dk.decode(model, batch, decoder, stop=EmittedTwice(3), max_new_tokens=9)
        for number, row in enumerate(free.hypotheses()):
            for rank, tokens in enumerate(row):
                ends = [n for n in range(1, 10) if tokens[:n].count(3) == 2]
                assert out.hypotheses()[number][rank] == tokens[: ends[0] if ends else 9]
                assert out.finish_reason[number][rank] == ("twice" if ends else "length")


# Beam search


def when_full(scores: list[float], length: int, best_live: float, max_length: int) -> bool:  # noqa: ARG001
    return False


def looks_better(scores: list[float], length: int, best_live: float, max_length: int) -> bool:  # noqa: ARG001
    return best_live / length > scores[-1]


@pytest.mark.parametrize(
    ("rule", "goes_on"),
    [(dk.WhenFull(), when_full), (dk.Heuristic(), looks_better)],
    ids=["when full", "heuristic"],
)
@LAWS
@given(
    batch=prompts(vocab=5),
    seed=st.integers(0, 2**31),
    beams=st.integers(1, 4),
    ends=st.sampled_from([(), (2,)]),
    which=st.sampled_from(["twice", "spent"]),
)
def test_under_beam_search_memory_follows_its_hypothesis(  # noqa: PLR0913, PLR0917
    rule: dk.StopRule,
    goes_on: Any,  # noqa: ANN401 - one of the two above
    batch: list[list[int]],
    seed: int,
    beams: int,
    ends: tuple[int, ...],
    which: str,
) -> None:
    """As a slow search that reads every hypothesis from its first token on."""
    model = HashModel(5, seed)
    slow = cache(lambda text: next_log_probs(model)(list(text)))

    def log_probs(text: list[int]) -> list[float]:
        return slow(tuple(text))

    search = dk.BeamSearch(beams, stop_rule=rule, num_return=beams)
    stop: dk.StoppingCriterion = EmittedTwice(3) if which == "twice" else Budget(-4.0)
    out = dk.decode(model, batch, search, stop=stop, end_ids=ends, max_new_tokens=6)
    for number, prompt in enumerate(batch):

        def finishes(tokens: list[int], prompt: list[int] = prompt) -> bool:
            if which == "twice":
                return tokens.count(3) >= 2
            return sum(log_probs(prompt + tokens[:n])[token] for n, token in enumerate(tokens)) < -4.0

        expected = beam_search(
            log_probs, prompt, beams, dk.LengthPenalty(1.0), goes_on, set(ends), 6, finishes
        )
        assert [hypothesis.tokens for hypothesis in expected] == out.hypotheses()[number]
        reasons = [
            "end" if h.tokens[-1] in ends else which if finishes(h.tokens) else "length" for h in expected
        ]
        assert out.finish_reason[number] == reasons + ["missing"] * (beams - len(expected))


@pytest.mark.parametrize("name", ["reorder_memory", "pick_memory"])
def test_without_either_reorder_of_memory_the_law_above_fails(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def texts() -> list[list[list[list[int]]]]:
        search = dk.BeamSearch(3, num_return=3)
        return [
            dk.decode(HashModel(5, seed), [[1]], search, stop=EmittedTwice(3), max_new_tokens=6).hypotheses()
            for seed in range(20)
        ]

    right = texts()
    forget = {
        "reorder_memory": lambda memory, source_rows: memory,  # noqa: ARG005
        "pick_memory": lambda memories, chosen: memories[0],  # noqa: ARG005
    }
    monkeypatch.setattr(step, name, forget[name])
    assert sum(ours != theirs for ours, theirs in zip(right, texts(), strict=True)) >= 5


@pytest.mark.slow
@LAWS
@given(
    batch=prompts(vocab=5),
    seed=st.integers(0, 2**31),
    beams=st.integers(1, 4),
    rule=st.sampled_from([dk.WhenFull(), dk.Heuristic(), dk.Proved(), dk.Patience(2.0)]),
)
def test_a_criterion_on_an_id_is_an_end_id(
    batch: list[list[int]], seed: int, beams: int, rule: dk.StopRule
) -> None:
    model, search = HashModel(5, seed), dk.BeamSearch(beams, stop_rule=rule, num_return=beams)
    expected = dk.decode(model, batch, search, end_ids=2, pad_id=0, max_new_tokens=5)
    out = dk.decode(model, batch, search, stop=dk.EndIds(2), pad_id=0, max_new_tokens=5)
    for name in ("tokens", "lengths", "valid", "token_log_probs", "score", "parents"):
        assert torch.equal(getattr(expected, name), getattr(out, name)), name
    assert expected.finish_reason == out.finish_reason


def test_finished_by_a_criterion_a_hypothesis_competes_by_its_score() -> None:
    # 1 finishes at once and scores log .5; 2 3 scores log .5 * .96, less in sum and more by the mean.
    model = MarkovModel([[0.0, 0.5, 0.5, 0.0], [0.25] * 4, [0.0, 0.02, 0.02, 0.96], [0.25] * 4])
    stop = dk.StopWhen(lambda ids: ids[-1] in {1, 3}, ids=True, reason="odd")
    out = dk.decode(model, [[0]], dk.BeamSearch(2, num_return=2), stop=stop, max_new_tokens=3)
    assert out.hypotheses() == [[[2, 3], [1]]]
    assert out.finish_reason == [["odd", "odd"]]
    by_sum = dk.BeamSearch(2, num_return=2, scorer=dk.LogProb())
    assert dk.decode(model, [[0]], by_sum, stop=stop, max_new_tokens=3).hypotheses() == [[[1], [2, 3]]]


def test_every_hypothesis_has_its_own_reason() -> None:
    model = MarkovModel([[0.0, 0.4, 0.35, 0.25], *[[0.97, 0.01, 0.01, 0.01]] * 3])
    stop = [dk.EndIds(1, reason="one"), EmittedTwice(0)]
    search = dk.BeamSearch(3, num_return=3, scorer=dk.LogProb())
    out = dk.decode(model, [[3]], search, stop=stop, end_ids=2, max_new_tokens=4)
    assert out.hypotheses() == [[[0, 1], [0, 2], [0, 3, 0]]]
    assert out.finish_reason == [["one", "end", "twice"]]


def test_where_all_candidates_are_finished_the_search_ends() -> None:
    stop = dk.StopWhen(lambda ids: len(ids) == 2, ids=True)
    search = dk.BeamSearch(3, num_return=3, stop_rule=dk.Patience(9.0))
    out = dk.decode(HashModel(6), [[1]], search, stop=stop, max_new_tokens=8)
    assert out.lengths.tolist() == [[2, 2, 2]]
    assert out.finish_reason == [["stopped"] * 3]


# The laws of decoders


@pytest.mark.parametrize(
    "stop", [EmittedTwice(3), Budget(-3.0), [dk.EndIds(1), EmittedTwice(4)]], ids=["twice", "spent", "either"]
)
@pytest.mark.parametrize("decoder", decoders(), ids=repr)
def test_decoders_with_criteria_keep_the_laws_of_decoders(decoder: dk.Decoder[Any], stop: Any) -> None:  # noqa: ANN401
    check_decoder(decoder, stop=stop, max_examples=15)


def test_sampling_with_criteria_keeps_the_laws_of_decoders() -> None:
    check_decoder(lambda seeds: dk.Sample(2, seeds=seeds), stop=EmittedTwice(3), max_examples=15)


class IgnoresCriteria(dk.Decoder[Any]):
    """Emits token 0, and applies no criteria."""

    class State(NamedTuple):
        history: dk.History
        limits: dk.Limits
        done: Tensor
        model_scores: Tensor | None = None

    rows_per_prompt = 1

    def init(self, history: dk.History, limits: dk.Limits) -> State:
        return self.State(history, limits, torch.tensor(False))

    def step(self, scores: Tensor, state: State) -> tuple[State, dk.Selection]:
        tokens = torch.zeros(len(scores), dtype=torch.long)
        history = state.history.append(tokens)
        return state._replace(history=history), dk.Selection(tokens)

    def finalize(self, state: State) -> dk.Decoded:
        return dk.RowState.start(state.history, state.limits).decoded(hypotheses=1)


def test_a_decoder_that_applies_no_criterion_is_refused_where_there_is_one() -> None:
    dk.decode(HashModel(5), [[1]], IgnoresCriteria(), max_new_tokens=2)
    with pytest.raises(dk.DecodekitError, match="decode: IgnoresCriteria must apply the stopping criteria"):
        dk.decode(HashModel(5), [[1]], IgnoresCriteria(), stop=EmittedTwice(1), max_new_tokens=2)


def test_criteria_are_applied_once_per_step_and_row() -> None:
    calls: Counter[tuple[int, ...]] = Counter()
    stop = dk.StopWhen(lambda ids: bool(calls.update([tuple(ids)])), ids=True)
    dk.decode(HashModel(5), [[1]], dk.Greedy(), stop=stop, max_new_tokens=4)
    assert sorted(map(len, calls)) == [1, 2, 3, 4]
    assert set(calls.values()) == {1}


@pytest.mark.parametrize("wrong", [None, "end", 5])
def test_criteria_combine_with_criteria_only(wrong: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match="AnyOf: every criterion must be a StoppingCriterion"):
        EmittedTwice(1) | wrong
    with pytest.raises(TypeError, match="AllOf: every criterion must be a StoppingCriterion"):
        EmittedTwice(1) & wrong
