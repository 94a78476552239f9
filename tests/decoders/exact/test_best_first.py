"""Best-first search: its order, its beams and its options. `test_search.py` tests that it is exact."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel, beam_search, next_log_probs
from tests.conformance import Guiding

CHAIN = MarkovModel([[0.0, 0.5, 0.3, 0.2], [0.2, 0.2, 0.5, 0.1], [0.1, 0.1, 0.1, 0.7], [0.25] * 4])


class RecordingModel:
    """A model that records the sequences of every call."""

    def __init__(self, model: dk.Model) -> None:
        self.model, self.calls = model, []  # type: ignore[var-annotated]

    def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> Any:  # noqa: ANN401
        self.calls.append(prompt.ids())
        return self.model.start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)


def test_the_node_of_the_largest_bound_is_expanded_next() -> None:
    model = RecordingModel(CHAIN)
    out = dk.decode(model, [[0]], dk.BestFirst(scorer=dk.LogProb()), max_new_tokens=3, end_ids=3)
    # .5, then .3, then .5 * .5; [2 3] scores .3 * .7 = .21, and [1 2] (.25) has only [1 2 3], .175.
    assert model.calls == [[[0]], [[0, 1]], [[0, 2]], [[0, 1, 2]]]
    assert out.hypotheses() == [[[2, 3]]]
    assert out.report.nodes.tolist() == [4]  # type: ignore[attr-defined]


def test_every_call_expands_a_node_of_every_unfinished_prompt() -> None:
    model = RecordingModel(CHAIN)
    steps: list[int] = []
    out = dk.decode(
        model,
        [[0], [3, 2]],
        dk.BestFirst(scorer=dk.LogProb()),
        max_new_tokens=3,
        end_ids=3,
        on_step=steps.append,
    )
    assert model.calls == [[[0], [3, 2]], [[0, 1]], [[0, 2]], [[0, 1, 2]]]
    assert out.hypotheses() == [[[2, 3]], [[3]]]
    assert steps == [1, 2, 3, 4]
    assert out.report.nodes.tolist() == [4, 1]  # type: ignore[attr-defined]


def test_one_call_may_expand_several_nodes() -> None:
    model = RecordingModel(CHAIN)
    search = dk.BestFirst(scorer=dk.LogProb(), at_once=2)
    out = dk.decode(model, [[0]], search, max_new_tokens=3, end_ids=3)
    assert model.calls == [[[0]], [[0, 1], [0, 2]], [[0, 1, 2]]]
    assert out.hypotheses() == [[[2, 3]]]


def test_max_nodes_counts_nodes_and_not_calls() -> None:
    model = RecordingModel(CHAIN)
    search = dk.BestFirst(scorer=dk.LogProb(), at_once=4, max_nodes=2)
    out = dk.decode(model, [[0]], search, max_new_tokens=3, end_ids=3)
    assert model.calls == [[[0]], [[0, 1]]]
    assert out.report.nodes.tolist() == [2]  # type: ignore[attr-defined]


# The oracle sums in float64, where ties break differently, so this compares scores without ties.
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    vocab=st.integers(2, 6),
    new=st.integers(1, 5),
    beams=st.integers(1, 5),
    ends=st.sampled_from([(), (0,), (0, 1)]),
)
def test_with_beams_and_a_monotone_scorer_the_result_is_that_of_beam_search(
    seed: int, vocab: int, new: int, beams: int, ends: tuple[int, ...]
) -> None:
    def continues(scores: list[float], length: int, best_live: float, max_length: int) -> bool:
        del length, max_length
        return best_live > scores[-1]

    model, prompts = HashModel(vocab, seed), [[1], [0, 1], [1, 1, 0]]
    number = min(beams, vocab**new)
    out = dk.decode(
        model,
        prompts,
        dk.BestFirst(scorer=dk.LogProb(), beams=beams, num_return=number),
        max_new_tokens=new,
        end_ids=ends,
    )
    for prompt, found in zip(prompts, out.hypotheses(), strict=True):
        expected = beam_search(next_log_probs(model), prompt, beams, dk.LogProb(), continues, set(ends), new)
        assert [hypothesis.tokens for hypothesis in expected[:number]] == found


@pytest.mark.parametrize(
    "scorer", [dk.LogProb(), dk.LengthPenalty(1.0), dk.LengthPenalty(-1.0), dk.WordReward(0.5)]
)
def test_with_beams_the_result_is_that_of_a_beam_search_that_stops_by_proof(scorer: dk.PathScorer) -> None:
    prompts = [[token, other] for token in range(6) for other in (1, 2)]
    for beams, new in ((1, 4), (3, 5)):
        for chain in (dk.Chain(), dk.NoRepeatNGram(2)):
            both = [
                dk.decode(HashModel(6, 3, end_ids=(0, 4)), prompts, search, chain, max_new_tokens=new)
                for search in (
                    dk.BeamSearch(beams, scorer=scorer, num_return=beams, stop_rule=dk.Proved()),
                    dk.BestFirst(beams=beams, scorer=scorer, num_return=beams),
                )
            ]
            assert both[0].hypotheses() == both[1].hypotheses()
            assert torch.equal(both[0].score, both[1].score)
            report = both[1].report
            assert isinstance(report, dk.Certificate)
            assert report.nodes is not None
            assert (report.nodes <= 1 + beams * (new - 1)).all()


def test_with_beams_fewer_nodes_are_expanded_and_every_proof_is_correct() -> None:
    prompts = [[token, other] for token in range(6) for other in range(6)]
    model, scorer = HashModel(6, 5, end_ids=(0,)), dk.LogProb()
    exact = dk.decode(model, prompts, dk.BestFirst(scorer=scorer), max_new_tokens=5)
    out = dk.decode(model, prompts, dk.BestFirst(scorer=scorer, beams=2), max_new_tokens=5)
    report = out.report
    assert isinstance(report, dk.Certificate)
    assert report.nodes is not None
    assert report.nodes.float().mean() < 0.7 * (1 + 2 * 4)  # of the nodes that two beams expand
    assert report.proved.any()
    assert not report.proved.all()
    assert torch.equal(exact.score[report.proved], out.score[report.proved])
    assert (exact.score[:, 0] <= torch.maximum(report.bound, report.worst)).all()


class Fined(dk.AdjustedScorer):
    """Subtracts a fine for every token of some ids."""

    base = dk.LogProb()

    def __init__(self, fines: dict[int, float]) -> None:
        self.fines = fines

    def init_adjustment(self, history: dk.History, limits: dk.Limits) -> Tensor:  # noqa: ARG002
        return torch.zeros(len(history.tokens))

    def update_adjustment(self, extended: dk.ExtendedHypotheses, memory: Tensor) -> Tensor:
        return memory - sum(fine * (extended.tokens == token) for token, fine in self.fines.items())

    def adjustment(self, lengths: Tensor, memory: Tensor) -> Tensor:  # noqa: ARG002
        return memory

    def adjustment_bound(self, lengths: Tensor, max_length: int, memory: Tensor) -> Tensor:  # noqa: ARG002
        return memory


def test_with_beams_a_hypothesis_that_ends_at_a_low_rank_is_pruned_and_enters_the_bound() -> None:
    model = MarkovModel([[0.1, 0.5, 0.3, 0.1], [0.25] * 4, [0.25] * 4, [0.7, 0.0, 0.15, 0.15]])
    search = dk.BestFirst(beams=1, scorer=Fined({1: 3.0}))
    out = dk.decode(model, [[3]], search, max_new_tokens=3, end_ids=(1, 2))
    # [0 1], .35, takes the only place of its length, despite its fine; [0 2], .21, would be better.
    assert out.hypotheses() == [[[0, 1]]]
    report = out.report
    assert isinstance(report, dk.Certificate)
    torch.testing.assert_close(report.bound.exp(), torch.tensor([0.7 * 0.3]))
    assert not report.proved.any()


def test_with_beams_hypotheses_that_cannot_win_still_take_their_places() -> None:
    # [0] ends: .4, less a fine, .05. The fine of [1] (.32) leaves nothing, but its continuations have
    # greater sums than [2 2] (.154) and [2 4] (.126), the best, so a beam search prunes these.
    rows = [[0.4, 0.32, 0.28, 0.0, 0.0], [0.0, 0.51, 0.0, 0.49, 0.0], [0.0, 0.0, 0.55, 0.0, 0.45]]
    model = MarkovModel([[0.2] * 5, rows[1], rows[2], rows[0], [0.2] * 5])
    scorer = Fined({0: 2.08, 1: 4.0})
    for search in (
        dk.BeamSearch(2, scorer=scorer, stop_rule=dk.Proved()),
        dk.BestFirst(beams=2, scorer=scorer),
    ):
        out = dk.decode(model, [[3]], search, max_new_tokens=3, end_ids=(0, 4))
        assert out.hypotheses() == [[[0]]]
        assert isinstance(out.report, dk.Certificate)
        assert not out.report.proved.any()
    exact = dk.decode(model, [[3]], dk.BestFirst(scorer=scorer), max_new_tokens=3, end_ids=(0, 4))
    assert exact.hypotheses() == [[[2, 4]]]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: dk.BestFirst(scorer="mean"), TypeError, "scorer must be a Scorer or PathScorer"),  # type: ignore[arg-type]
        (
            lambda: dk.BestFirst(num_return=0),
            ValueError,
            "num_return must be an integer of at least 1, got 0",
        ),
        (lambda: dk.BestFirst(num_return=True), ValueError, "num_return must be an integer"),
        (
            lambda: dk.BestFirst(max_nodes=0),
            ValueError,
            "max_nodes must be an integer of at least 1, or None",
        ),
        (lambda: dk.BestFirst(max_nodes=1.5), ValueError, "max_nodes must be an integer"),  # type: ignore[arg-type]
        (lambda: dk.BestFirst(at_once=0), ValueError, "at_once must be an integer of at least 1, got 0"),
        (
            lambda: dk.BestFirst(beams=0),
            ValueError,
            "beams must be an integer of at least 1 and of num_return",
        ),
        (lambda: dk.BestFirst(beams=2, num_return=3), ValueError, "got 2 for 3 to return"),
        (lambda: dk.BestFirst(beams=2, at_once=2), ValueError, "so at_once must be 1"),
        (lambda: dk.BestFirst(beams=2, scorer=Guiding()), ValueError, "the scorer must not guide the search"),
    ],
)
def test_options_out_of_range_are_refused(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"BestFirst: .*{message}"):
        make()
