"""Prompts that wait take the places of finished ones, and every prompt's result is what it gives alone."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import decodekit as dk
from decodekit.engine import loop
from decodekit.engine.batching import scheduler
from decodekit.testing import MarkovModel
from tests.engine.batching.test_eviction import (
    DECODERS,
    PROCESSORS,
    PROMPTS,
    TOY,
    EndsAfter,
    Sessionless,
    assert_same,
    countdown,
    staying,
)
from tests.equivalence.families import wrap


class Counted:
    """A model that writes down the rows of every pass, and how many prompts began before it."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401
        self.model, self.vocabulary = model, model.vocabulary
        self.passes: list[int] = []
        self.begun: list[tuple[int, int]] = []

    def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[Any, Tensor]:
        self.begun.append((len(self.passes), len(prompt.tokens)))
        session, logits = self.model.start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)
        advance = session.advance

        def counted(tokens: Tensor, source_rows: Tensor | None) -> Tensor:
            self.passes.append(len(tokens))
            result: Tensor = advance(tokens, source_rows)
            return result

        session.advance = counted
        return session, logits


class Captured(Counted):
    """The same, for captured runs."""

    def start_captured(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[Any, Tensor]:
        return self.start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As soon as a place is free it is taken, and any number of runs may stand side by side."""
    monkeypatch.setattr(scheduler, "FREE", 0)
    monkeypatch.setattr(loop, "MOST_RUNS", 10**9)
    monkeypatch.setattr("decodekit.engine.batching.eviction.MOST", 0.999)
    return monkeypatch


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts began each time while others were under way."""
    seen: list[int] = []
    admit = loop.ContinuousBatch.admit

    def spy(self: Any, numbers: list[int]) -> None:  # noqa: ANN401
        seen.extend([len(numbers)] * bool(self.active and numbers))
        admit(self, numbers)

    monkeypatch.setattr(loop.ContinuousBatch, "admit", spy)
    return seen


def test_prompts_take_the_places_of_finished_ones() -> None:
    model = Counted(countdown(9))
    prompts = [[n] for n in (9, 2, 3, 2, 4, 3, 1, 2)]
    out = dk.decode(model, prompts, dk.Greedy(), max_new_tokens=9, batch_tokens=4 * 10)
    assert out.lengths[:, 0].tolist() == [9, 2, 3, 2, 4, 3, 1, 2]
    # Four begin. With the second token both of length 2 are finished, and one joins: 9 may come to have 12
    # columns, of which 40 hold three times. With the third 3 is, and 3 joins; with the sixth these two are,
    # and 1 joins, which is finished at once; then 2. In waves 3 passes more would come after the 8 of 9.
    assert model.begun == [(0, 4), (2, 1), (3, 1), (6, 1), (7, 1)]
    assert model.passes == [4, 2, 2, 3, 3, 1, 1, 2]


def test_with_places_taken_a_skewed_list_takes_far_fewer_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [20 if n % 8 == 0 else 1 + n % 3 for n in range(64)]
    passes = []
    for runs in (0, loop.MOST_RUNS):
        monkeypatch.setattr(loop, "MOST_RUNS", runs)
        model = Counted(countdown(20))
        out = dk.decode(model, [[n] for n in lengths], dk.Greedy(), max_new_tokens=20, batch_tokens=16 * 40)
        assert out.lengths[:, 0].tolist() == lengths
        passes.append(len(model.passes))
    in_waves, refilled = passes
    assert refilled < 0.7 * in_waves


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize("processors", PROCESSORS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_gives_what_it_gives_in_one_batch(
    decoder: str, processors: str, one_by_one: pytest.MonkeyPatch, joined: list[int]
) -> None:
    del one_by_one
    chain, search = PROCESSORS[processors], DECODERS[decoder]
    budget, ends = 4 * search.rows_per_prompt * 24, EndsAfter([9, 2, 12, 1, 3, 4])
    out = dk.decode(TOY, PROMPTS, search, chain, max_new_tokens=20, batch_tokens=budget, stop=ends)
    assert_same(staying(TOY, PROMPTS, search, chain, stop=ends), out)
    assert joined


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=6), min_size=1, max_size=12),
    st.integers(0, 2**31),
    st.integers(1, 200),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_every_prompt_gives_what_it_gives_alone_whoever_it_joins(
    prompts: list[list[int]], seed: int, budget: int, rows: int, check_every: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(1, 9, (len(prompts),), generator=generator).tolist()
    beams, numbers = dk.BeamSearch(rows, num_return=rows), range(len(prompts))
    search: dk.Decoder[Any] = beams if seed % 2 else dk.Sample(rows, seeds=numbers)
    options: dict[str, Any] = {"batch_tokens": budget, "check_every": check_every}
    results = dict(dk.decode_each(TOY, prompts, search, max_new_tokens=8, stop=EndsAfter(ends), **options))
    assert sorted(results) == list(range(len(prompts)))
    for number, result in results.items():
        one: dk.Decoder[Any] = search if seed % 2 else dk.Sample(rows, seeds=[number])
        alone = dk.decode(TOY, [prompts[number]], one, max_new_tokens=8, stop=EndsAfter([ends[number]]))
        for name in (
            "tokens",
            "lengths",
            "token_log_probs",
            "score",
            "valid",
            "finish_code",
            "finish_reason",
        ):
            expected, actual = getattr(alone, name), getattr(result, name)
            assert torch.equal(expected, actual) if isinstance(expected, Tensor) else expected == actual
        moved = torch.where(alone.parents >= 0, alone.parents + number * rows, -1)
        assert torch.equal(moved, result.parents)


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize("decoder", [dk.Greedy(), dk.BeamSearch(3, num_return=2)], ids=["greedy", "beams"])
@pytest.mark.parametrize(
    ("family", "from_rows"),
    [
        *((family, 1) for family in ("gpt2", "llama", "qwen2", "bloom", "opt", "falcon-alibi")),
        *((family, 1) for family in ("t5", "mt5")),
        ("marian", 2),  # of several rows, in a trie
        *((family, 9) for family in ("mistral-window", "gemma3-mixed")),
    ],
)
def test_a_transformers_model_gives_the_same_whoever_joins(
    family: str, from_rows: int, decoder: dk.Decoder[Any], joined: list[int]
) -> None:
    model = wrap(family)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(8, 30, (2 + n * 3 % 7,), generator=generator).tolist() for n in range(12)]
    ends, bans = EndsAfter([1 + n * 5 % 9 for n in range(12)]), [dk.NoRepeatNGram(2)]
    expected = staying(model, prompts, decoder, bans, max_new_tokens=12, stop=ends)
    budget = 4 * decoder.rows_per_prompt * 24
    out = dk.decode(model, prompts, decoder, bans, max_new_tokens=12, stop=ends, batch_tokens=budget)
    assert expected.hypotheses() == out.hypotheses()
    assert torch.equal(expected.parents, out.parents)
    # In float64 models the rest is the same too; float32 products round by the number of rows.
    torch.testing.assert_close(expected.token_log_probs, out.token_log_probs, atol=1e-5, rtol=0)
    assert bool(joined) == (decoder.rows_per_prompt >= from_rows)


def test_strings_and_times_end_texts_whoever_joins() -> None:
    model, prompts = dk.load(), ["Once upon a time", "The king said", "There was", "She", "And", "A bird"]
    stop = [dk.StopStrings([" the", " a"]), dk.MaxTime(1e6)]
    expected = dk.decode(model, prompts, dk.Greedy(), max_new_tokens=12, stop=stop)
    out = dk.decode(model, prompts, dk.Greedy(), max_new_tokens=12, stop=stop, batch_tokens=40)
    assert expected.texts == out.texts
    assert expected.finish_reason == out.finish_reason
    # Time counts from the call, also for those that join later.
    late = dk.decode(model, prompts, dk.Greedy(), max_new_tokens=12, stop=dk.MaxTime(1e-99), batch_tokens=40)
    assert late.lengths.tolist() == [[1]] * 6


def test_a_decoder_that_looks_inside_the_model_waits_for_its_own_batch() -> None:
    model, prompts = wrap("gpt2"), [[8 + n] * (1 + n % 3) for n in range(6)]
    search = dk.ContrastiveSearch(3, 0.5)
    expected = staying(model, prompts, search, max_new_tokens=6)
    out = dk.decode(model, prompts, search, max_new_tokens=6, batch_tokens=3 * 3 * 9)
    assert expected.hypotheses() == out.hypotheses()


def test_what_is_captured_keeps_its_batch() -> None:
    prompts = [[n % 7] for n in range(9)]
    model = Captured(TOY)
    out = dk.decode(model, prompts, dk.Greedy(), max_new_tokens=20, batch_tokens=70, capture=True)
    assert_same(staying(TOY, prompts, dk.Greedy()), out)
    assert [number for _, number in model.begun] == [3, 3, 3]
    assert set(model.passes) == {3}


def test_sessions_that_nobody_can_join_go_on_in_batches() -> None:
    prompts = [[n % 7] for n in range(9)]
    out = dk.decode(Sessionless(), prompts, dk.Greedy(), max_new_tokens=20, batch_tokens=70)
    assert_same(staying(TOY, prompts, dk.Greedy()), out)


class Full(Counted):
    """Has no memory for a start, or a pass, when it is told so."""

    def __init__(self, model: Any, *, start: int = -1, step: int = -1) -> None:  # noqa: ANN401
        super().__init__(model)
        self.failing = {"start": start, "step": step}

    def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[Any, Tensor]:
        if len(self.begun) == self.failing["start"]:
            self.begun.append((len(self.passes), -len(prompt.tokens)))
            raise MemoryError
        session, logits = super().start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)
        advance = session.advance

        def full(tokens: Tensor, source_rows: Tensor | None) -> Tensor:
            if len(self.passes) == self.failing["step"]:
                self.passes.append(-len(tokens))
                raise MemoryError
            result: Tensor = advance(tokens, source_rows)
            return result

        session.advance = full
        return session, logits


LENGTHS = [9, 2, 3, 2, 9, 3, 1, 2]


def test_where_others_cannot_begin_those_under_way_go_on() -> None:
    model = Full(countdown(9), start=1)
    prompts = [[n] for n in LENGTHS]
    out = dk.decode(model, prompts, dk.Greedy(), max_new_tokens=9, batch_tokens=4 * 10)
    assert out.lengths[:, 0].tolist() == LENGTHS
    # Nobody begins twice but those that could not; then at most half as many are under way.
    assert sum(number for _, number in model.begun if number > 0) == 8
    at, failed = model.begun[1]
    assert failed < 0
    assert max(model.passes[at + 3 :]) <= 4


@pytest.mark.parametrize("step", range(12))
def test_where_a_pass_has_no_memory_what_is_finished_is_kept(step: int) -> None:
    model = Full(countdown(9), step=step)
    each = dk.decode_each(model, [[n] for n in LENGTHS], dk.Greedy(), max_new_tokens=9, batch_tokens=4 * 10)
    seen: list[int] = []
    for number, result in each:
        seen.append(number)
        assert result.lengths.tolist() == [[LENGTHS[number]]]
    assert sorted(seen) == list(range(8))


def test_a_stuck_prompt_is_named_after_the_others_are_finished() -> None:
    # 0 is followed by the end, 4 by 4 more and the end; after 1 and 2 only what was said before could come.
    model = MarkovModel(
        [
            [0, 0, 0, 1.0, 0, 0, 0, 0, 0],
            [0, 0, 1.0, 0, 0, 0, 0, 0, 0],
            [0, 1.0, 0, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 1.0, 0, 0, 0, 0, 0],
            *([float(to == at + 1) for to in range(9)] for at in range(4, 8)),
            [0, 0, 0, 1.0, 0, 0, 0, 0, 0],
        ],
        end_ids=(3,),
    )
    said: list[tuple[int, list[int]]] = []

    def listen() -> None:
        prompts, unsaid = [[0, 0, 4], [0, 0], [1], [0]], dk.NoRepeatNGram(1)
        for number, result in dk.decode_each(
            model, prompts, dk.Greedy(), unsaid, max_new_tokens=9, batch_tokens=24
        ):
            said.append((number, result.tokens[0, 0].tolist()))

    with pytest.raises(dk.DecodingError, match="every token is banned for prompt 2"):
        listen()
    assert dict(said)[0] == [5, 6, 7, 8, 3]
    assert dict(said)[1] == [3]


class Breaks(dk.StatelessProcessor):
    """Makes scores of one prompt that are no numbers."""

    batch_independent = True

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        bad = history.to_rows(torch.arange(history.batch) == 5)
        return scores.masked_fill(bad[:, None], torch.nan)


def test_scores_that_are_no_numbers_are_named_by_their_prompt() -> None:
    seen: list[int] = []

    def listen() -> None:
        prompts = [[n] for n in LENGTHS]
        for number, _ in dk.decode_each(
            countdown(9), prompts, dk.Greedy(), Breaks(), max_new_tokens=9, batch_tokens=40
        ):
            seen.append(number)

    with pytest.raises(dk.DecodingError, match="for prompt 5 some were NaN"):
        listen()
    assert {0, 4} <= set(seen)


def test_as_many_rows_are_under_way_as_the_budget_holds() -> None:
    budget, new = 120, 8
    model = Counted(countdown(12))
    prompts = [[n % 9 + 1] * (1 + n % 5) for n in range(40)]
    out = dk.decode(model, prompts, dk.Sample(2, seeds=range(40)), max_new_tokens=new, batch_tokens=budget)
    assert out.lengths[:, 0].tolist() == [min(n % 9 + 1, new) for n in range(40)]
    assert max(model.passes) <= budget // (1 + new)


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(st.data())
def test_those_that_begin_fit_the_budget_with_those_under_way(data: st.DataObject) -> None:
    columns = data.draw(st.lists(st.integers(2, 20), min_size=1, max_size=20))
    budget = scheduler.Budget(data.draw(st.integers(1, 200)), data.draw(st.integers(1, 20)))
    rows = data.draw(st.integers(1, 3))
    queue = scheduler.PromptQueue(columns, budget, rows)

    class UnderWay:
        active: tuple[int, ...] = ()
        steps: tuple[int, ...] = ()
        can_admit = True

    under_way: Any = UnderWay()
    begun: list[int] = []
    while queue.waiting:
        new = queue.next(under_way)
        assert new or under_way.active
        begun += new
        under_way.active, under_way.steps = (*under_way.active, *new), (*under_way.steps, *(0 for _ in new))
        if new and len(under_way.active) > 1:
            longest = max(columns[n] + s for n, s in zip(under_way.active, under_way.steps, strict=True))
            assert len(under_way.active) * rows <= min(budget.rows, budget.tokens // longest)
        left = data.draw(st.lists(st.sampled_from(under_way.active), max_size=3))
        stay = [place for place, number in enumerate(under_way.active) if number not in left]
        under_way.steps = tuple(under_way.steps[place] + 1 for place in stay)
        under_way.active = tuple(under_way.active[place] for place in stay)
    assert begun == sorted(range(len(columns)), key=lambda number: -columns[number])


def test_no_more_than_a_few_runs_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "MOST_RUNS", 2)
    monkeypatch.setattr(scheduler, "FREE", 0)
    most: list[int] = []
    step = loop.ContinuousBatch.step

    def spy(self: Any) -> Any:  # noqa: ANN401
        most.append(len(self._runs))
        return step(self)

    monkeypatch.setattr(loop.ContinuousBatch, "step", spy)
    lengths = [9 if n % 3 == 0 else 1 for n in range(30)]
    out = dk.decode(countdown(9), [[n] for n in lengths], dk.Greedy(), max_new_tokens=9, batch_tokens=60)
    assert out.lengths[:, 0].tolist() == lengths
    assert max(most) == 2
