"""Finished prompts leave the batch, and nothing else changes."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import decodekit as dk
from decodekit.engine.batching import eviction
from decodekit.engine.decode import decode_steps
from decodekit.testing import HashModel, MarkovModel
from tests.equivalence.compare import NEW, batch
from tests.equivalence.families import ALL, wrap

TOY = HashModel(7, 3, end_ids=(2,))
PROMPTS = [[1], [3, 4], [5, 6, 0, 1], [2, 2], [4, 4, 4], [0]]
SEEDS = range(len(PROMPTS))
DECODERS: dict[str, dk.Decoder[Any]] = {
    "greedy": dk.Greedy(),
    "samples": dk.Sample(3, seeds=SEEDS),
    "beams": dk.BeamSearch(3, num_return=3),
    "beams, proved": dk.BeamSearch(3, num_return=2, stop_rule=dk.Proved()),
    "diverse beams": dk.DiverseBeamSearch(4, 2, num_return=3),
    "stochastic beams": dk.StochasticBeamSearch(3, seeds=SEEDS),
    "Poisson beams": dk.ConditionalPoissonBeams(3, seeds=SEEDS),
    "arithmetic samples": dk.ArithmeticSample(3, seeds=SEEDS),
    "chains of thought": dk.CoTDecoding(3),
    "constrained beams": dk.ConstrainedBeamSearch(4, [[dk.Phrase([3, 4 + n % 2])] for n in SEEDS]),
}
PROCESSORS: dict[str, Sequence[dk.LogitsProcessor]] = {
    "none": (),
    "n-grams": [dk.NoRepeatNGram(2)],
    "penalties": [dk.RepetitionPenalty(1.3), dk.DRY(0.8), dk.FrequencyPenalty(0.2)],
    "guidance": [dk.ClassifierFreeGuidance(HashModel(7, 9), 2.0, prompts=[[n] for n in SEEDS])],
    "one for each prompt": [
        dk.Temperature([0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        dk.XTC(0.1, 0.5, seeds=SEEDS),
        dk.MirostatV2(3.0),
    ],
}
NAMES = [
    *("tokens", "lengths", "finish_reason", "valid", "token_log_probs", "score", "parents"),
    *("finish_code", "pad_id", "texts"),
]


def to_the_end(steps: Generator[Any, None, dk.Decoded]) -> dk.Decoded:
    """The result of a run that is watched, which no prompt leaves."""
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            result: dk.Decoded = finished.value
            return result


def staying(
    model: Any,  # noqa: ANN401
    prompts: Any,  # noqa: ANN401
    decoder: dk.Decoder[Any],
    processors: Sequence[dk.LogitsProcessor] = (),
    *,
    max_new_tokens: int = 20,
    **options: Any,  # noqa: ANN401
) -> dk.Decoded:
    return to_the_end(
        decode_steps(model, prompts, decoder, processors, max_new_tokens=max_new_tokens, **options)
    )


def same(expected: object, actual: object) -> bool:
    if isinstance(expected, Tensor):
        return isinstance(actual, Tensor) and torch.equal(expected, actual)
    return expected == actual


def assert_same(expected: dk.Decoded, actual: dk.Decoded) -> None:
    different = [name for name in NAMES if not same(getattr(expected, name), getattr(actual, name))]
    assert different == []
    report = expected.report
    assert type(report) is type(actual.report)
    if is_dataclass(report):
        names = [field.name for field in fields(report)]
        assert all(same(getattr(report, name), getattr(actual.report, name)) for name in names)


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts went on after every cut."""
    seen: list[int] = []
    evict = eviction.ActivePrompts.evict

    def spy(self: Any, present: Any) -> Any:  # noqa: ANN401
        after, kept = evict(self, present)
        seen.append(len(after.nonfinite))
        return after, kept

    monkeypatch.setattr(eviction.ActivePrompts, "evict", spy)
    return seen


def countdown(most: int) -> MarkovModel:
    """Token n is followed by n - 1, and 0 ends: a prompt of n says n tokens."""
    rows = [[float(to == max(at - 1, 0)) for to in range(most + 1)] for at in range(most + 1)]
    return MarkovModel(rows, end_ids=(0,))


def test_prompts_leave_once_a_quarter_is_finished(cuts: list[int]) -> None:
    out = dk.decode(countdown(9), [[9], [1], [2], [3], [3], [8], [2], [8]], dk.Greedy(), max_new_tokens=9)
    assert out.hypotheses()[0] == [[8, 7, 6, 5, 4, 3, 2, 1, 0]]
    assert out.lengths[:, 0].tolist() == [9, 1, 2, 3, 3, 8, 2, 8]
    assert out.parents[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    # After the first step one of eight is finished: too few. After the second three are, then two of five.
    assert cuts == [5, 3, 1]


@pytest.mark.parametrize("processors", PROCESSORS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_results_are_the_same_when_finished_prompts_leave(
    decoder: str, processors: str, cuts: list[int]
) -> None:
    chain, search = PROCESSORS[processors], DECODERS[decoder]
    expected = staying(TOY, PROMPTS, search, chain)
    assert_same(expected, dk.decode(TOY, PROMPTS, search, chain, max_new_tokens=20))
    assert cuts or decoder in {"beams, proved", "constrained beams"}  # where hardly any text is short


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=12), st.integers(1, 3), st.integers(1, 4))
def test_every_result_stands_in_its_prompts_place(lengths: list[int], samples: int, check_every: int) -> None:
    model, sample = countdown(12), dk.Sample(samples, seeds=range(len(lengths)))
    out = dk.decode(model, [[n] for n in lengths], sample, max_new_tokens=12, check_every=check_every)
    assert [[n] * samples for n in lengths] == out.lengths.tolist()
    rows = [[n * samples + s for s in range(samples)] for n in range(len(lengths))]
    assert rows == out.parents[..., 0].tolist()


@pytest.mark.parametrize("decoder", [dk.Greedy(), dk.BeamSearch(3, num_return=2)], ids=["greedy", "beams"])
@pytest.mark.parametrize("family", ALL)
def test_caches_of_every_family_go_on_without_finished_prompts(
    family: str, decoder: dk.Decoder[Any], cuts: list[int]
) -> None:
    model, prompts = wrap(family), [row[mask.bool()].tolist() for row, mask in zip(*batch(), strict=True)]
    ends = EndsAfter([2 + 3 * n for n in range(len(prompts))])
    expected = staying(model, prompts, decoder, max_new_tokens=2 * NEW, stop=ends)
    out = dk.decode(model, prompts, decoder, max_new_tokens=2 * NEW, stop=ends)
    assert expected.hypotheses() == out.hypotheses()
    # In float64 models the rest is the same too; float32 products round by the number of rows.
    torch.testing.assert_close(expected.token_log_probs, out.token_log_probs, atol=1e-5, rtol=0)
    assert cuts


class EndsAfter(dk.StoppingCriterion):
    """Finishes every prompt after a number of tokens of its own."""

    reason = "enough"
    batch_independent = True

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)

    def init(self, history: dk.History, run: object) -> Any:  # noqa: ANN401
        del run
        return history.to_rows(torch.tensor(self.lengths)), history.position.clone()

    def apply(self, history: dk.History, log_probs: Tensor, memory: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        del log_probs
        lengths, start = memory
        return history.position - start >= lengths, memory


def test_a_stuck_prompt_is_named_by_its_place_in_the_run(cuts: list[int]) -> None:
    # 0 is followed by the end; after 1 and 2 only what was said before could come.
    ban = dk.NoRepeatNGram(1)
    model = MarkovModel([[0, 0, 0, 1.0], [0, 0, 1.0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]], end_ids=(3,))
    with pytest.raises(dk.DecodingError, match="every token is banned for prompt 3"):
        dk.decode(model, [[0], [0], [0], [1]], dk.Greedy(), ban, max_new_tokens=9)
    assert cuts == [1]


class Knows(dk.StatelessProcessor):
    """Knows nothing of prompts that leave: it has one number for each row."""

    def __init__(self, rows: int) -> None:
        self.biases = torch.arange(rows * 7).view(rows, 7) % 5 * 0.5

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        del history
        return scores + self.biases


class Says(dk.Decoder[dk.RowState]):
    """A decoder of somebody who knows nothing of prompts that leave."""

    rows_per_prompt = 1

    def init(self, history: dk.History, limits: dk.Limits) -> dk.RowState:
        return dk.RowState.start(history, limits)

    def step(self, scores: Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:
        return state.emit(scores.argmax(-1), scores)

    def finalize(self, state: dk.RowState) -> dk.Decoded:
        return state.decoded(hypotheses=1)


class Sessionless:
    """A model whose sessions nobody can leave."""

    vocabulary = TOY.vocabulary

    def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[Any, Tensor]:
        session, logits = TOY.start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)

        class Plain:
            def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
                return session.advance(tokens, source_rows)

        return Plain(), logits


@pytest.mark.parametrize(
    ("make", "processors"),
    [
        (dk.Greedy, [Knows(len(PROMPTS))]),
        (Says, []),
        (lambda: dk.Sample(2, generator=torch.Generator().manual_seed(1)), []),
        (
            lambda: dk.BeamSearch(2, expansion=dk.SampledExpansion(torch.Generator().manual_seed(1))),
            [],
        ),
        (dk.Greedy, [dk.ClassifierFreeGuidance(Sessionless(), 2.0)]),
    ],
    ids=["processor", "decoder", "generator", "drawn beams", "second model"],
)
def test_nobody_leaves_what_needs_all_prompts(
    make: Callable[[], dk.Decoder[Any]], processors: list[dk.LogitsProcessor], cuts: list[int]
) -> None:
    expected = staying(TOY, PROMPTS, make(), processors)
    assert_same(expected, dk.decode(TOY, PROMPTS, make(), processors, max_new_tokens=20))
    assert cuts == []


def test_nobody_leaves_a_session_that_does_not_know_how(cuts: list[int]) -> None:
    session, _ = Sessionless().start(dk.Prompt.from_ids(PROMPTS), rows_per_prompt=1, capacity=9)
    assert not isinstance(session, dk.ShrinkingSession)
    out = dk.decode(Sessionless(), PROMPTS, dk.Greedy(), max_new_tokens=20)
    assert_same(staying(TOY, PROMPTS, dk.Greedy()), out)
    assert cuts == []


def test_nobody_leaves_a_run_that_is_traced_or_streamed(cuts: list[int]) -> None:
    dk.decode(TOY, PROMPTS, dk.Greedy(), max_new_tokens=20, trace=2)
    assert cuts == []
