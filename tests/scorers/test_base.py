"""Path scorers: their memory follows its hypothesis, and stepwise ones rank unfinished hypotheses."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float32
from torch import Tensor

import decodekit as dk
from decodekit.testing import HashModel, HashModelWithOutputs, MarkovModel, next_log_probs
from tests.conformance import Guiding, Weakest


def weakest(model: dk.Model, prompt: list[int], tokens: list[int]) -> float:
    log_probs = next_log_probs(model)
    return min(log_probs(prompt + tokens[:step])[token] for step, token in enumerate(tokens))


def test_the_memory_decides_which_finished_hypothesis_is_best() -> None:
    # By the sum [1, 2] (0.6 * 0.5) is best; by its weakest token [2, 2] (0.4, 0.7).
    model = MarkovModel([[0.0, 0.6, 0.4], [0.5, 0.2, 0.3], [0.3, 0.0, 0.7]])
    by_sum = dk.decode(model, [[0]], dk.BeamSearch(2, scorer=dk.LogProb()), max_new_tokens=2)
    assert by_sum.hypotheses() == [[[1, 0]]]
    both = dk.decode(model, [[0]], dk.BeamSearch(2, scorer=Weakest(), num_return=2), max_new_tokens=2)
    assert both.hypotheses() == [[[1, 0], [2, 2]]]
    torch.testing.assert_close(both.score.exp(), torch.tensor([[0.5, 0.4]]))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    beams=st.integers(1, 4),
    new=st.integers(1, 4),
    scorer=st.sampled_from([Weakest(), Guiding()]),
)
def test_scores_are_those_of_the_path(seed: int, beams: int, new: int, scorer: dk.PathScorer) -> None:
    model, prompts = HashModel(5, seed, end_ids=(2,)), [[1], [3, 4]]
    search = dk.BeamSearch(beams, scorer=scorer, num_return=beams)
    out = dk.decode(model, prompts, search, max_new_tokens=new)
    for number, prompt in enumerate(prompts):
        for rank, tokens in enumerate(out.hypotheses()[number]):
            expected = weakest(model, prompt, tokens)
            torch.testing.assert_close(out.score[number, rank].item(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), vocab=st.integers(2, 4), new=st.integers(1, 3), guided=st.booleans())
def test_as_many_beams_as_texts_find_the_optimum(seed: int, vocab: int, new: int, guided: bool) -> None:  # noqa: FBT001
    model = HashModel(vocab, seed)
    search = dk.BeamSearch(vocab**new, scorer=Guiding() if guided else Weakest(), stop_rule=dk.Proved())
    out = dk.decode(model, [[1]], search, max_new_tokens=new)
    best = max(weakest(model, [1], list(text)) for text in itertools.product(range(vocab), repeat=new))
    torch.testing.assert_close(out.score.item(), best, atol=1e-5, rtol=1e-5)


def slow_guided(model: HashModel, prompt: list[int], beams: int, new: int) -> list[list[int]]:
    """`Guiding` with lists: candidates by the parent's partial score and the token, kept by their own."""
    log_probs = next_log_probs(model)
    live: list[tuple[list[int], float, float]] = [([], 0.0, 0.0)]  # tokens, sum, weakest
    for _ in range(new):
        candidates = [
            (total + 3 * weak + added, [*tokens, token], total + added, min(weak, added))
            for tokens, total, weak in live
            for token, added in enumerate(log_probs(prompt + tokens))
        ]
        candidates.sort(key=lambda candidate: -candidate[0])
        kept = sorted(candidates[: 2 * beams], key=lambda candidate: -(candidate[2] + 3 * candidate[3]))
        live = [(tokens, total, weak) for _, tokens, total, weak in kept[:beams]]
    return [tokens for tokens, _, _ in live]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), beams=st.integers(1, 4), new=st.integers(1, 4))
def test_the_partial_score_decides_which_hypotheses_go_on(seed: int, beams: int, new: int) -> None:
    model, prompts = HashModel(5, seed), [[1], [3, 4]]
    search = dk.BeamSearch(beams, scorer=Guiding(), num_return=beams)
    out = dk.decode(model, prompts, search, max_new_tokens=new)
    for number, prompt in enumerate(prompts):
        expected = slow_guided(model, prompt, beams, new)
        assert sorted(expected) == sorted(out.hypotheses()[number])


class LastColumn(Weakest):
    """Ranks by the attention to the prompt's last column."""

    outputs_spec = dk.ModelOutputsSpec(attention=True)

    def update(
        self, extended: dk.ExtendedHypotheses, memory: Float32[Tensor, " hyps"]
    ) -> Float32[Tensor, " hyps"]:
        assert extended.attention is not None
        return memory - extended.attention[:, -1]


def test_a_scorer_is_given_the_attention_of_its_own_hypothesis() -> None:
    prompts = [[1], [3, 4, 5]]
    search = dk.BeamSearch(3, scorer=LastColumn(), num_return=3, stop_rule=dk.WhenFull())
    for seed in range(5):
        model = HashModelWithOutputs(6, seed)
        out = dk.decode(model, prompts, search, max_new_tokens=4)
        for number, prompt in enumerate(prompts):
            for rank, tokens in enumerate(out.hypotheses()[number]):
                expected = 0.0
                for step in range(len(tokens)):
                    session, _ = model.start_with_outputs(
                        dk.Prompt.from_ids([prompt]),
                        rows_per_prompt=1,
                        capacity=9,
                        outputs_spec=LastColumn.outputs_spec,
                    )
                    for token in tokens[:step]:
                        session.advance(torch.tensor([token]), None)
                    attention = session.model_outputs.attention
                    assert attention is not None
                    expected -= float(attention[0, -1])
                torch.testing.assert_close(out.score[number, rank].item(), expected, atol=1e-5, rtol=1e-5)


class Repeats(Weakest):
    """Ranks by earlier occurrences of the newest token, prompt included: needs the history."""

    def update(
        self, extended: dk.ExtendedHypotheses, memory: Float32[Tensor, " hyps"]
    ) -> Float32[Tensor, " hyps"]:
        history = extended.history()
        occurrences = (history.tokens == extended.tokens[:, None]) & history.valid
        return memory - (occurrences.sum(-1) - 1)


def test_a_scorer_is_given_the_history_of_its_own_hypothesis() -> None:
    prompts = [[1], [3, 4, 3]]
    out = dk.decode(
        HashModel(5, 3), prompts, dk.BeamSearch(3, scorer=Repeats(), num_return=3), max_new_tokens=4
    )
    for number, prompt in enumerate(prompts):
        for rank, tokens in enumerate(out.hypotheses()[number]):
            text = prompt + tokens
            repeats = sum(text[:place].count(text[place]) for place in range(len(prompt), len(text)))
            assert out.score[number, rank] == -repeats


def test_two_argument_scorers_are_the_special_case() -> None:
    scorer, lengths = dk.LengthPenalty(1.0), torch.tensor([2])
    log_probs: Float32[Tensor, " hyps"] = torch.tensor([-3.0])
    assert isinstance(scorer, dk.PathScorer)
    assert torch.equal(scorer.score(log_probs, lengths, ()), scorer(log_probs, lengths))
    assert torch.equal(scorer.upper_bound(log_probs, lengths, 6, ()), scorer.bound(log_probs, lengths, 6))
