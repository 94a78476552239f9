"""Certificates of beam search: bounds hold, and easy searches are proved."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel, enumerate_hypotheses, next_log_probs
from tests.conformance import Guiding, Weakest

SURE = MarkovModel([[0.01, 0.98, 0.01], [0.01, 0.01, 0.98], [1.0, 0.0, 0.0]], end_ids=(2,))


def test_a_likely_sequence_is_proved_and_the_bound_is_the_score_of_the_next() -> None:
    out = dk.decode(SURE, [[0]], dk.BeamSearch(1, scorer=dk.LogProb()), max_new_tokens=3)
    assert out.hypotheses() == [[[1, 2]]]
    certificate = out.report
    assert isinstance(certificate, dk.Certificate)
    assert certificate.proved.tolist() == [True]
    assert certificate.gap.tolist() == [0.0]
    torch.testing.assert_close(certificate.worst.exp(), torch.tensor([0.98 * 0.98]))
    torch.testing.assert_close(certificate.bound.exp(), torch.tensor([0.01]))  # [2] and [0, ...]


def test_nothing_is_proved_where_a_better_hypothesis_was_pruned() -> None:
    trap = MarkovModel([[0.0, 0.6, 0.4], [0.3, 0.3, 0.4], [0.0, 0.0, 1.0]], end_ids=())
    out = dk.decode(trap, [[0]], dk.BeamSearch(1, scorer=dk.LogProb()), max_new_tokens=3)
    certificate = out.report
    assert isinstance(certificate, dk.Certificate)
    assert certificate.proved.tolist() == [False]
    torch.testing.assert_close(certificate.bound.exp(), torch.tensor([0.4]))
    torch.testing.assert_close(certificate.gap, (torch.tensor([0.4]) / out.log_prob[0].exp()).log())


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    vocab=st.integers(2, 5),
    new=st.integers(1, 4),
    beams=st.integers(1, 6),
    returned=st.integers(1, 3),
    rule=st.sampled_from([dk.WhenFull(), dk.Heuristic(), dk.Proved(), dk.Patience(2.0)]),
    alpha=st.sampled_from([-1.0, 0.0, 0.6, 1.0, 2.0]),
    ends=st.sampled_from([(), (0,), (0, 1)]),
)
def test_no_other_hypothesis_scores_more_than_the_bound(  # noqa: PLR0913, PLR0917
    seed: int,
    vocab: int,
    new: int,
    beams: int,
    returned: int,
    rule: dk.StopRule,
    alpha: float,
    ends: tuple[int, ...],
) -> None:
    beams = min(beams, vocab**new)
    scorer, number = dk.LengthPenalty(alpha), min(returned, beams)
    model = HashModel(vocab, seed, scale=3.0)
    search = dk.BeamSearch(beams, scorer=scorer, stop_rule=rule, num_return=number)
    out = dk.decode(model, [[1], [0, 1]], search, max_new_tokens=new, end_ids=ends)
    certificate = out.report
    assert isinstance(certificate, dk.Certificate)
    for prompt, text in enumerate([[1], [0, 1]]):
        every = enumerate_hypotheses(next_log_probs(model), text, scorer, set(ends), new)
        found = out.hypotheses()[prompt]
        others = [one.score for one in every if one.tokens not in found]
        best_other = max(others, default=-torch.inf)
        assert best_other <= certificate.bound[prompt] + 1e-5  # float32 sums, in another order
        if certificate.proved[prompt] and len(found) == number:
            assert best_other <= out.score[prompt, number - 1] + 1e-5


def test_as_many_beams_as_sequences_always_prove_the_result() -> None:
    for seed in range(20):
        model = HashModel(3, seed, end_ids=(0,))
        for scorer in (dk.LogProb(), dk.LengthPenalty(1.0), Weakest(), Guiding()):
            search = dk.BeamSearch(9, scorer=scorer, stop_rule=dk.Proved())
            out = dk.decode(model, [[1]], search, max_new_tokens=2)
            assert isinstance(out.report, dk.Certificate)
            assert out.report.proved.all()


def test_nothing_is_proved_where_a_processor_raises_log_probs() -> None:
    # Token 2 is pruned at first, and then its reward would have made it the best.
    bias = dk.SequenceBias({(2,): 5.0})
    out = dk.decode(SURE, [[0]], dk.BeamSearch(1, scorer=dk.LogProb()), bias, max_new_tokens=3)
    assert isinstance(out.report, dk.Certificate)
    assert not out.report.proved.any()
    assert out.report.bound.tolist() == [torch.inf]


@pytest.mark.parametrize(
    "expansion", [dk.SampledExpansion(), dk.PerNodeExpansion(1), dk.DiverseSiblings(1.0)]
)
def test_nothing_is_proved_under_expansions_that_may_skip_better_continuations(
    expansion: dk.Expansion,
) -> None:
    for seed in range(10):
        search = dk.BeamSearch(2, expansion=expansion)
        out = dk.decode(HashModel(7, seed), [[1]], search, max_new_tokens=3)
        assert isinstance(out.report, dk.Certificate)
        assert not out.report.proved.any()


def test_continuations_that_are_no_candidates_count_as_pruned() -> None:
    # One beam looks at two continuations: [3] ends, [1] goes on and ends badly. [2, 3] (0.1) is beyond both.
    model = MarkovModel(
        [[0.0, 0.3, 0.1, 0.6], [0.24, 0.24, 0.24, 0.28], [0.0, 0.0, 0.0, 1.0], [0.25] * 4], end_ids=(3,)
    )
    search = dk.BeamSearch(1, scorer=dk.LogProb(), stop_rule=dk.Patience(2.0))
    out = dk.decode(model, [[0]], search, max_new_tokens=3)
    assert out.hypotheses() == [[[3]]]
    assert isinstance(out.report, dk.Certificate)
    assert out.report.bound.exp().item() >= 0.1


def test_nothing_is_proved_under_a_stateful_scorer_with_continuations_beyond_the_candidates() -> None:
    for scorer in (Weakest(), dk.UIDMaximum(0.1), dk.WeightedSum([dk.LogProb(), Weakest()])):
        out = dk.decode(HashModel(9, 1), [[1]], dk.BeamSearch(2, scorer=scorer), max_new_tokens=2)
        assert isinstance(out.report, dk.Certificate)
        assert out.report.bound.tolist() == [torch.inf]


@pytest.mark.parametrize("search", [dk.BeamSearch(27, scorer=dk.LogProb()), dk.BestFirst(), dk.DepthFirst()])
def test_a_nan_score_is_an_error(search: Any) -> None:  # noqa: ANN401
    model = HashModel(3, seed=1, end_ids=(0,))
    nonfinite = dk.ScoreFunction(lambda log_probs, lengths: (log_probs + lengths).sqrt())
    with pytest.raises(dk.DecodingError, match=r"a scorer must return a number.*got NaN"):
        dk.decode(model, [[1]], replace(search, scorer=nonfinite), max_new_tokens=3)


@pytest.mark.parametrize("search", [dk.BeamSearch(9, scorer=dk.LogProb()), dk.BestFirst(), dk.DepthFirst()])
def test_a_hypothesis_that_scores_minus_infinity_is_never_returned(search: Any) -> None:  # noqa: ANN401
    model = HashModel(3, seed=1, end_ids=(0,))
    long = dk.ScoreFunction(lambda sums, lengths: torch.where(lengths < 3, -torch.inf, sums))
    out = dk.decode(model, [[1]], replace(search, scorer=long), max_new_tokens=4)
    assert int(out.lengths[0, 0]) >= 3
    never = dk.ScoreFunction(lambda sums, lengths: torch.where(lengths < 9, -torch.inf, sums))
    with pytest.raises(dk.DecodingError, match="the scorer forbids every hypothesis that ends"):
        dk.decode(model, [[1]], replace(search, scorer=never), max_new_tokens=3)
