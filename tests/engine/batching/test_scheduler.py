"""A long list of prompts, in several batches: the same results, each in its place."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import decodekit as dk
from decodekit.errors import is_out_of_memory
from decodekit.models.hf.memory_estimate import (
    MemoryEstimate,
    memory_estimate,
    tokens_that_fit,
)
from decodekit.testing import MarkovModel
from tests.engine.batching.test_eviction import (
    DECODERS,
    PROCESSORS,
    PROMPTS,
    TOY,
    EndsAfter,
    assert_same,
    countdown,
    staying,
)
from tests.equivalence.families import build, wrap


class Watched:
    """A model that writes down its batches, and has memory for so many rows only."""

    def __init__(self, model: Any, most: int = 10**9, error: Exception | None = None) -> None:  # noqa: ANN401
        self.model, self.most, self.vocabulary = model, most, model.vocabulary
        self.error = RuntimeError("DefaultCPUAllocator: can't allocate memory") if error is None else error
        self.batches: list[list[list[int]]] = []

    def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[Any, Tensor]:
        self.batches.append(prompt.ids())
        if rows_per_prompt * len(prompt.tokens) > self.most:
            raise self.error
        result: tuple[Any, Tensor] = self.model.start(
            prompt, rows_per_prompt=rows_per_prompt, capacity=capacity
        )
        return result


def ids(*lengths: int) -> list[list[int]]:
    return [[number % 7] * length for number, length in enumerate(lengths)]


def test_batches_hold_prompts_of_similar_lengths_the_longest_first() -> None:
    model = Watched(countdown(7))
    prompts = [[1], [1] * 4, [1], [1] * 3, [1] * 4, [1] * 2]
    # Two new tokens: 6 columns for the longest, of which two rows fit; 5 for the next; then all that is left.
    out = dk.decode(model, prompts, dk.Greedy(), max_new_tokens=2, batch_tokens=12)
    assert [list(map(len, batch)) for batch in model.batches] == [[4, 4], [3, 2], [1, 1]]
    assert out.hypotheses() == [[[0]]] * 6
    assert out.prompt is not None
    assert out.prompt.ids() == prompts


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize("processors", PROCESSORS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_several_batches_give_what_one_gives(decoder: str, processors: str) -> None:
    chain, search = PROCESSORS[processors], DECODERS[decoder]
    expected = staying(TOY, PROMPTS, search, chain)
    for budget in (1, 60, 150):
        out = dk.decode(TOY, PROMPTS, search, chain, max_new_tokens=20, batch_tokens=budget)
        assert_same(expected, out)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=6), min_size=1, max_size=10),
    st.integers(1, 200),
    st.integers(1, 3),
    st.integers(1, 6),
)
def test_every_prompt_is_handed_out_once_with_what_it_gives_alone(
    prompts: list[list[int]], budget: int, samples: int, new: int
) -> None:
    seeds = range(len(prompts))
    each = list(
        dk.decode_each(TOY, prompts, dk.Sample(samples, seeds=seeds), max_new_tokens=new, batch_tokens=budget)
    )
    assert sorted(number for number, _ in each) == list(seeds)
    for number, result in each:
        one = dk.Sample(samples, seeds=[number])
        alone = dk.decode(TOY, [prompts[number]], one, max_new_tokens=new)
        for name in ("tokens", "lengths", "token_log_probs", "score", "valid", "finish_code"):
            assert torch.equal(getattr(alone, name), getattr(result, name))
        assert alone.finish_reason == result.finish_reason
        assert alone.sequences.tolist() == result.sequences.tolist()
        rows = torch.where(alone.parents >= 0, alone.parents + number * samples, -1)
        assert torch.equal(rows, result.parents)


def test_results_come_as_prompts_finish() -> None:
    model = countdown(9)
    each = dk.decode_each(model, [[9], [1], [5], [1]], dk.Greedy(), max_new_tokens=9, batch_tokens=None)
    assert [number for number, _ in each] == [1, 3, 2, 0]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=12), st.integers(1, 4), st.integers(1, 12))
def test_where_memory_is_not_enough_batches_become_smaller(
    lengths: list[int], beams: int, prompts_that_fit: int
) -> None:
    model = Watched(countdown(12), most=beams * prompts_that_fit)
    prompts, search = [[length] for length in lengths], dk.BeamSearch(beams)
    out = dk.decode(model, prompts, search, max_new_tokens=12, batch_tokens="auto")
    assert out.lengths[:, 0].tolist() == lengths
    sizes = [len(batch) for batch in model.batches]
    assert sizes[0] == len(lengths)
    # Half of the batch after one that failed; then never more than what did fit.
    tried = list(itertools.takewhile(lambda size: size > prompts_that_fit, sizes))
    for before, after in itertools.pairwise([*tried, *sizes[len(tried) : len(tried) + 1]]):
        assert after == max(before // 2, 1)
    assert max(sizes[len(tried) :]) == sizes[len(tried)]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("not enough memory: you tried to allocate 8 bytes."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
)
def test_all_of_these_mean_that_memory_is_not_enough(error: Exception) -> None:
    assert is_out_of_memory(error)
    out = dk.decode(Watched(TOY, 2, error), PROMPTS, dk.Greedy(), max_new_tokens=4, batch_tokens="auto")
    assert torch.equal(out.tokens, dk.decode(TOY, PROMPTS, dk.Greedy(), max_new_tokens=4).tokens)


def test_memory_that_runs_out_in_the_middle_keeps_what_is_finished() -> None:
    class Late(Watched):
        def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[Any, Tensor]:
            session, logits = super().start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)
            advance, steps, size = session.advance, iter(range(100)), len(prompt.tokens)

            def full(tokens: Tensor, source_rows: Tensor | None) -> Tensor:
                if size == 4 and next(steps) == 2:
                    raise self.error
                result: Tensor = advance(tokens, source_rows)
                return result

            session.advance = full
            return session, logits

    model = Late(countdown(9))
    each = list(dk.decode_each(model, [[9], [1], [5], [1]], dk.Greedy(), max_new_tokens=9, batch_tokens=400))
    assert [number for number, _ in each] == [1, 3, 2, 0]
    assert model.batches == [[[9], [1], [5], [1]], [[9], [5]]]


@pytest.mark.parametrize("error", [RuntimeError("another"), MemoryError()])
def test_other_errors_and_too_little_for_one_prompt_are_not_hidden(error: Exception) -> None:
    with pytest.raises(type(error)):
        dk.decode(Watched(TOY, 0, error), PROMPTS, dk.Greedy(), max_new_tokens=4, batch_tokens="auto")


def test_a_stuck_prompt_is_named_by_its_place_in_the_list() -> None:
    # What prompt 2 could say, it has said: its batch is the first, and holds it alone.
    model = MarkovModel([[0, 0, 0, 1.0], [0, 0, 1.0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]], end_ids=(3,))
    unsaid = dk.NoRepeatNGram(1)
    with pytest.raises(dk.DecodingError, match="every token is banned for prompt 2"):
        dk.decode(model, [[0], [0], [0, 1]], dk.Greedy(), unsaid, max_new_tokens=9, batch_tokens=11)


@pytest.mark.parametrize(
    ("decoder", "processors", "message"),
    [
        (dk.Sample(2), (), "Sample may need all prompts in one. Pass seeds= instead of a generator"),
        (dk.StochasticBeamSearch(2), (), "StochasticBeamSearch may need .* Pass seeds="),
        (dk.DoLa(dk.Sample(2)), (), "Sample may need"),
        (
            dk.BeamSearch(2, expansion=dk.SampledExpansion()),
            (),
            "SampledExpansion may .*independent = True",
        ),
        (
            dk.Greedy(),
            (dk.Temperature(2.0), dk.Chain(dk.compat.hf.FromHF(print))),
            "batch_independent = True",
        ),
    ],
)
def test_what_needs_all_prompts_at_once_is_refused_by_name(
    decoder: dk.Decoder[Any], processors: Sequence[dk.LogitsProcessor], message: str
) -> None:
    with pytest.raises(dk.DecodekitError, match=message):
        dk.decode(TOY, PROMPTS, decoder, processors, max_new_tokens=4, batch_tokens=100)


def test_numbers_for_each_prompt_must_be_as_many_as_all_prompts() -> None:
    with pytest.raises(dk.DecodekitError, match="got 2 for 6 prompts"):
        dk.decode(TOY, PROMPTS, dk.Greedy(), dk.Temperature([1.0, 2.0]), max_new_tokens=4, batch_tokens=30)
    with pytest.raises(dk.DecodekitError, match="got 2 seeds for 6 prompts"):
        dk.decode(TOY, PROMPTS, dk.Sample(seeds=[1, 2]), max_new_tokens=4, batch_tokens=30)


@pytest.mark.parametrize("given", [0, -1, 1.5, True, "all"])
def test_a_budget_must_be_a_number_of_tokens_or_auto(given: Any) -> None:  # noqa: ANN401
    with pytest.raises(dk.DecodekitError, match="batch_tokens must be an integer of at least 1, 'auto'"):
        dk.decode(TOY, PROMPTS, dk.Greedy(), max_new_tokens=4, batch_tokens=given)


def test_a_trace_is_refused_where_there_are_several_batches() -> None:
    with pytest.raises(dk.DecodekitError, match="a trace shows the steps of one batch"):
        dk.decode(TOY, PROMPTS, dk.Greedy(), max_new_tokens=4, batch_tokens=9, trace=1)


def test_a_loop_of_its_own_is_refused() -> None:
    with pytest.raises(TypeError, match=r"UniqueSample runs its own loop.* no batch_tokens"):
        dk.decode(TOY, PROMPTS, dk.UniqueSample(2, seeds=range(6)), max_new_tokens=4, batch_tokens=9)


def test_progress_counts_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    steps: list[int] = []
    out = dk.decode(
        TOY, PROMPTS, dk.Greedy(), max_new_tokens=4, batch_tokens=30, progress=True, on_step=steps.append
    )
    assert torch.equal(out.tokens, dk.decode(TOY, PROMPTS, dk.Greedy(), max_new_tokens=4).tokens)
    assert steps == list(range(1, len(steps) + 1))
    assert "6/6" in capsys.readouterr().out


@pytest.mark.parametrize("decoder", [dk.Greedy(), dk.BeamSearch(3, num_return=2)], ids=["greedy", "beams"])
@pytest.mark.parametrize("family", ["gpt2", "gemma3-mixed", "falcon-alibi", "t5", "marian"])
def test_a_transformers_model_gives_the_same_in_several_batches(
    family: str, decoder: dk.Decoder[Any]
) -> None:
    model = wrap(family)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 30, (2 + n * 3 % 7,), generator=generator).tolist() for n in range(7)]
    ends, bans = EndsAfter([1 + n * 5 % 9 for n in range(7)]), [dk.NoRepeatNGram(2)]
    expected = staying(model, prompts, decoder, bans, max_new_tokens=9, stop=ends)
    for budget in ("auto", 60):
        out = dk.decode(model, prompts, decoder, bans, max_new_tokens=9, stop=ends, batch_tokens=budget)
        assert_same(expected, out)


def test_texts_are_those_of_one_batch() -> None:
    model, prompts = dk.load(), ["Once upon a time", "The king said", "There was", "She"]
    expected = dk.decode(model, prompts, dk.Greedy(), max_new_tokens=6)
    out = dk.decode(model, prompts, dk.Greedy(), max_new_tokens=6, batch_tokens=24)
    assert expected.texts == out.texts
    each = dict(dk.decode_each(model, prompts, dk.Greedy(), max_new_tokens=6, batch_tokens=24))
    assert expected.texts == [(each[number].texts or [])[0] for number in range(4)]


def test_memory_is_counted_by_the_models_shape() -> None:
    model = build("gpt2")  # two layers of four heads of eight, in float64
    keys, working = 2 * 2 * 4 * 8, 16 * 32
    assert memory_estimate(model) == MemoryEstimate(8 * (2 * keys + working), 32 * model.config.vocab_size)
    assert tokens_that_fit(model, 100) > 1000
    assert (
        memory_estimate(build("qwen2")).token < memory_estimate(build("phi")).token
    )  # half the keys and values
