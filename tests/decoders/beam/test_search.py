"""Beam search: solved by hand, against the slow reference, against enumeration."""

import math
from collections import Counter
from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import decodekit as dk
from decodekit.testing import (
    HashModel,
    MarkovModel,
    beam_search,
    check_decoder,
    enumerate_hypotheses,
    next_log_probs,
)
from decodekit.testing.strategies import prompts

# Token 0 starts, 3 ends. The likeliest first token, 1, leads to an even choice; 2 leads to a sure end.
TRAP = MarkovModel(
    [
        [0.0, 0.6, 0.4, 0.0],
        [0.0, 0.3, 0.3, 0.4],
        [0.0, 0.05, 0.05, 0.9],
        [0.25, 0.25, 0.25, 0.25],
    ],
    end_ids=(3,),
)


def when_full(finished: list[float], length: int, best_live: float, max_length: int) -> bool:  # noqa: ARG001
    return False


def test_beam_search_finds_the_likelier_sequence_that_greedy_search_misses() -> None:
    greedy = dk.decode(TRAP, [[0]], dk.Greedy(), max_new_tokens=2)
    assert greedy.hypotheses() == [[[1, 3]]]
    beam = dk.decode(TRAP, [[0]], dk.BeamSearch(2), max_new_tokens=2)
    assert beam.hypotheses() == [[[2, 3]]]
    torch.testing.assert_close(beam.log_prob.exp(), torch.tensor([[0.4 * 0.9]]))
    torch.testing.assert_close(greedy.log_prob.exp(), torch.tensor([[0.6 * 0.4]]))


def test_hypotheses_are_returned_best_first_with_reasons_lengths_scores_and_parents() -> None:
    search = dk.BeamSearch(2, num_return=2, scorer=dk.LogProb(), stop_rule=dk.WhenFull())
    out = dk.decode(TRAP, [[0]], search, max_new_tokens=2)
    assert out.hypotheses() == [[[2, 3], [1, 3]]]
    assert out.finish_reason == [["end", "end"]]
    assert out.lengths.tolist() == [[2, 2]]
    # The first tokens are chosen on row 0, the only one that exists; then 1 is on row 0, 2 on row 1.
    assert out.parents.tolist() == [[[0, 1], [0, 0]]]
    torch.testing.assert_close(out.score.exp(), torch.tensor([[0.36, 0.24]]))
    assert out.valid.all()


def test_a_hypothesis_that_reaches_the_limit_is_finished_by_length() -> None:
    out = dk.decode(TRAP, [[0]], dk.BeamSearch(2), max_new_tokens=1)
    assert out.hypotheses() == [[[1]]]
    assert out.finish_reason == [["length"]]


def test_the_score_is_the_scorers_and_the_log_probs_are_the_models() -> None:
    out = dk.decode(TRAP, [[0]], dk.BeamSearch(2, scorer=dk.LengthPenalty(2.0)), max_new_tokens=2)
    torch.testing.assert_close(out.score, out.log_prob / 4)
    banned = dk.decode(TRAP, [[0]], dk.BeamSearch(2), dk.SuppressTokens([2]), max_new_tokens=2)
    assert banned.hypotheses() == [[[1, 3]]]
    torch.testing.assert_close(banned.token_log_probs.exp(), torch.tensor([[[0.6, 0.4]]]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "goes_on"),
    [
        (dk.WhenFull(), lambda alpha: when_full),  # noqa: ARG005
        (
            dk.Heuristic(),
            lambda alpha: lambda scores, length, live, longest: live / length**alpha > scores[-1],  # noqa: ARG005
        ),
        (
            dk.Proved(),
            lambda alpha: (
                lambda scores, length, live, longest: (
                    live / (longest if alpha > 0 else length) ** alpha > scores[-1]
                )
            ),
        ),
    ],
)
@settings(max_examples=60, deadline=None)
@given(
    batch=prompts(vocab=5),
    seed=st.integers(0, 2**31),
    beams=st.integers(1, 5),
    alpha=st.sampled_from([-1.0, 0.0, 0.7, 1.0, 2.0]),
    new=st.integers(1, 5),
    ends=st.sampled_from([(), (2,), (2, 4)]),
)
def test_beam_search_equals_the_slow_reference(  # noqa: PLR0913, PLR0917
    rule: dk.StopRule,
    goes_on: Callable[[float], Callable[[list[float], int, float, int], bool]],
    batch: list[list[int]],
    seed: int,
    beams: int,
    alpha: float,
    new: int,
    ends: tuple[int, ...],
) -> None:
    model = HashModel(5, seed)
    scorer = dk.LengthPenalty(alpha)
    search = dk.BeamSearch(beams, scorer=scorer, stop_rule=rule, num_return=beams)
    out = dk.decode(model, batch, search, max_new_tokens=new, end_ids=ends)
    for number, prompt in enumerate(batch):
        expected = beam_search(next_log_probs(model), prompt, beams, scorer, goes_on(alpha), set(ends), new)
        assert [hypothesis.tokens for hypothesis in expected] == out.hypotheses()[number]
        # Python's double precision against the run's single.
        torch.testing.assert_close(
            out.score[number, : len(expected)],
            torch.tensor([hypothesis.score for hypothesis in expected]),
            atol=1e-4,
            rtol=1e-4,
        )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    vocab=st.integers(2, 4),
    new=st.integers(1, 3),
    alpha=st.sampled_from([-1.0, 0.0, 1.0]),
)
def test_as_many_beams_as_sequences_find_the_optimum(seed: int, vocab: int, new: int, alpha: float) -> None:
    model = HashModel(vocab, seed, end_ids=(0,))
    scorer = dk.LengthPenalty(alpha)
    search = dk.BeamSearch(vocab**new, scorer=scorer, stop_rule=dk.Proved())
    out = dk.decode(model, [[1]], search, max_new_tokens=new)
    best = enumerate_hypotheses(next_log_probs(model), [1], scorer, {0}, new)[0]
    assert out.hypotheses() == [[best.tokens]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), beams=st.integers(1, 5), batch=prompts(vocab=5))
def test_the_best_hypotheses_do_not_depend_on_num_return(
    seed: int, beams: int, batch: list[list[int]]
) -> None:
    model = HashModel(5, seed, end_ids=(2,))
    every = dk.decode(model, batch, dk.BeamSearch(beams, num_return=beams), max_new_tokens=4)
    for number in range(1, beams):
        some = dk.decode(model, batch, dk.BeamSearch(beams, num_return=number), max_new_tokens=4)
        assert [best[:number] for best in every.hypotheses()] == some.hypotheses()


def test_where_fewer_sequences_exist_than_beams_the_rest_is_invalid_and_none_is_repeated() -> None:
    # Only two texts are allowed: 1 3 and 2 3.
    model = MarkovModel([[0, 0.5, 0.5, 0], [0, 0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 0]], end_ids=(3,))
    out = dk.decode(model, [[0]], dk.BeamSearch(4, num_return=4), max_new_tokens=5)
    assert sorted(out.hypotheses()[0]) == [[1, 3], [2, 3]]
    assert out.valid.tolist() == [[True, True, False, False]]
    assert out.finish_reason == [["end", "end", "missing", "missing"]]
    assert out.lengths.tolist() == [[2, 2, 0, 0]]


def test_a_prompt_on_which_every_token_is_banned_is_an_error_that_names_it() -> None:
    # After token 0 nothing may be said.
    model = MarkovModel([[0.5, 0.5], [0.5, 0.5]])

    class Dead(dk.StatelessProcessor):
        def process(self, history: dk.History, scores: Tensor) -> Tensor:
            first = history.tokens[:, :1] == 0
            return scores.masked_fill(first, -torch.inf)

    with pytest.raises(dk.DecodingError, match="every token is banned for prompt 1"):
        dk.decode(model, [[1], [0]], dk.BeamSearch(2), Dead(), max_new_tokens=3)


def test_a_beam_on_which_every_token_is_banned_is_dropped_and_the_others_go_on() -> None:
    class NothingAfterOne(dk.StatelessProcessor):
        def process(self, history: dk.History, scores: Tensor) -> Tensor:
            last = history.tokens.index_select(1, (history.position - 1).view(1))
            return scores.masked_fill(last == 1, -torch.inf)

    model = MarkovModel([[0, 0.9, 0.1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]], end_ids=(3,))
    search = dk.BeamSearch(2, num_return=2)
    out = dk.decode(model, [[0]], search, NothingAfterOne(), max_new_tokens=4)
    assert out.hypotheses() == [[[2, 3]]]


def test_patience_finds_hypotheses_of_better_scores() -> None:
    # Ending at once is likely, but a longer text scores better per token.
    model = MarkovModel([[0.0, 0.6, 0.4], [0.0, 0.95, 0.05], [1, 0, 0]], end_ids=(2,))
    hasty = dk.BeamSearch(1, scorer=dk.LengthPenalty(1.0), stop_rule=dk.Patience(1.0))
    patient = dk.BeamSearch(1, scorer=dk.LengthPenalty(1.0), stop_rule=dk.Patience(3.0))
    assert patient.stop_rule.capacity(1) == 3
    first = dk.decode(model, [[0]], hasty, max_new_tokens=6)
    last = dk.decode(model, [[0]], patient, max_new_tokens=6)
    assert first.score[0, 0] <= last.score[0, 0]


@pytest.mark.parametrize(("factor", "beams", "capacity"), [(1, 5, 5), (0.1, 5, 1), (1.5, 5, 8), (2, 4, 8)])
def test_patience_rounds_half_up(factor: float, beams: int, capacity: int) -> None:
    assert capacity == dk.Patience(factor).capacity(beams)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), beams=st.integers(1, 4), batch=prompts(vocab=5))
def test_a_patience_of_one_equals_when_full(seed: int, beams: int, batch: list[list[int]]) -> None:
    model = HashModel(5, seed, end_ids=(2,))
    rules = (dk.Patience(1.0), dk.WhenFull())
    one, other = (
        dk.decode(model, batch, dk.BeamSearch(beams, stop_rule=rule, num_return=beams), max_new_tokens=5)
        for rule in rules
    )
    assert one.hypotheses() == other.hypotheses()


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize(
    "rule", [dk.WhenFull(), dk.Heuristic(), dk.Proved(), dk.Patience(0.5), dk.Patience(2)]
)
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 1.0])
def test_beam_search_keeps_the_laws_of_decoders(rule: dk.StopRule, alpha: float) -> None:
    search = dk.BeamSearch(3, scorer=dk.LengthPenalty(alpha), stop_rule=rule, num_return=2)
    check_decoder(search, max_examples=15)


def test_no_sample_is_likelier_than_the_optimum() -> None:
    model = HashModel(4, seed=3)
    best = dk.decode(model, [[0]], dk.BeamSearch(64, scorer=dk.LogProb()), max_new_tokens=3)
    sampled = dk.decode(model, [[0]], dk.Sample(20, seeds=[1]), max_new_tokens=3)
    assert (sampled.log_prob <= best.log_prob + 1e-6).all()  # sums in single precision


@pytest.mark.parametrize("beams", [0, -1, 2.0, True])
def test_beams_must_be_an_integer_of_at_least_one(beams: int) -> None:
    with pytest.raises(ValueError, match="BeamSearch: beams must be"):
        dk.BeamSearch(beams)


@pytest.mark.parametrize("number", [0, 6, 1.0])
def test_num_return_is_at_most_the_number_of_hypotheses_that_can_finish(number: int) -> None:
    with pytest.raises(ValueError, match="BeamSearch: num_return must be"):
        dk.BeamSearch(5, num_return=number)
    with pytest.raises(ValueError, match="from 1 to 3"):
        dk.BeamSearch(5, stop_rule=dk.Patience(0.5), num_return=4)


def test_arguments_of_a_wrong_type_are_refused() -> None:
    with pytest.raises(TypeError, match="BeamSearch: scorer must be a Scorer or PathScorer such as"):
        dk.BeamSearch(2, scorer=1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="BeamSearch: stop_rule must be"):
        dk.BeamSearch(2, stop_rule=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [0, -1.0, math.inf, math.nan])
def test_patience_must_be_a_finite_number_above_zero(factor: float) -> None:
    with pytest.raises(ValueError, match="Patience: factor must be"):
        dk.Patience(factor)


def test_more_beams_than_continuations_are_refused() -> None:
    with pytest.raises(dk.DecodekitError, match=r"9 beams for 4 tokens \*\* 1 steps = 4"):
        dk.decode(TRAP, [[0]], dk.BeamSearch(9), max_new_tokens=1)
    assert dk.decode(TRAP, [[0]], dk.BeamSearch(9), max_new_tokens=2).valid.all()


class OffByOneLengthPenalty(dk.Scorer):
    """A broken copy: counts one token too many."""

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        return dk.LengthPenalty(1.0)(log_probs, lengths + 1)

    def bound(self, log_probs: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        return dk.LengthPenalty(1.0).bound(log_probs, lengths, max_length)


def test_an_off_by_one_in_the_length_penalty_is_caught_by_the_reference() -> None:
    differing = 0
    for seed in range(30):
        model = HashModel(5, seed)
        search = dk.BeamSearch(3, scorer=OffByOneLengthPenalty(), stop_rule=dk.WhenFull())
        out = dk.decode(model, [[0]], search, max_new_tokens=5, end_ids=2)
        expected = beam_search(next_log_probs(model), [0], 3, dk.LengthPenalty(1.0), when_full, {2}, 5)[0]
        differing += not math.isclose(float(out.score[0, 0]), expected.score, rel_tol=1e-4)
    assert differing == 30


def test_beam_sampling_keeps_the_laws_of_decoders() -> None:
    def drawn(prompts: list[int]) -> dk.BeamSearch:
        return dk.BeamSearch(2, expansion=dk.SampledExpansion(torch.Generator().manual_seed(len(prompts))))

    dk.testing.check_decoder(drawn, batch_gives_alone=False, captures=False, max_examples=20)


def test_beam_sampling_draws_sequences_by_their_probability() -> None:
    # One step, two beams: four tokens without replacement, of which the two likeliest are the hypotheses.
    probs = [0.4, 0.25, 0.15, 0.12, 0.08]
    expected: Counter[tuple[int, ...]] = Counter()
    for drawn in permutations(range(5), 4):
        chance, left = 1.0, 1.0
        for token in drawn:
            chance, left = chance * probs[token] / left, left - probs[token]
        expected[tuple(sorted(drawn)[:2])] += chance
    generator = torch.Generator().manual_seed(2)
    search = dk.BeamSearch(2, expansion=dk.SampledExpansion(generator), num_return=2, scorer=dk.LogProb())
    out = dk.decode(dk.testing.MarkovModel([probs] * 5), [[0]] * 4000, search, max_new_tokens=1)
    pairs = Counter(tuple(token for [token] in hypotheses) for hypotheses in out.hypotheses())
    assert set(pairs) == set(expected) == {(0, 1), (0, 2), (1, 2)}
    for pair, share in expected.items():
        assert pairs[pair] / 4000 == pytest.approx(share, abs=4 * (0.25 / 4000) ** 0.5)


def test_beam_sampling_from_one_token_per_step_equals_beam_search() -> None:
    model = dk.testing.HashModel(6, seed=3, scale=2.0, end_ids=(2,))
    only = dk.TopK(1)
    plain = dk.decode(model, [[1], [4]], dk.BeamSearch(1), only, max_new_tokens=6)
    drawn = dk.decode(
        model, [[1], [4]], dk.BeamSearch(1, expansion=dk.SampledExpansion()), only, max_new_tokens=6
    )
    assert plain.hypotheses() == drawn.hypotheses()
