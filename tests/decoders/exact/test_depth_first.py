"""Depth-first search: its order and its options. `test_search.py` tests that it is exact."""

from collections.abc import Callable

import pytest

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel
from tests.decoders.exact.test_best_first import RecordingModel

DOWN = MarkovModel([[0.0, 0.5, 0.45, 0.05], [0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7], [0.25] * 4])


def test_a_path_is_followed_to_its_end_before_the_next() -> None:
    model = RecordingModel(DOWN)
    out = dk.decode(model, [[0]], dk.DepthFirst(scorer=dk.LogProb()), max_new_tokens=3, end_ids=3)
    # 0: [3] .05, [1] .5, [2] .45. [1]: [1 3] .05, [1 0] .2, [1 1] .15, [1 2] .1. [1 0]: [1 0 1] .1.
    # [1 1] (.15): [1 1 0] .06. [1 2] (.1) is no more than the best so far. [2]: [2 3] .315 only.
    assert model.calls == [[[0]], [[0, 1]], [[0, 1, 0]], [[0, 1, 1]], [[0, 2]]]
    assert out.hypotheses() == [[[2, 3]]]


def test_a_first_hypothesis_is_found_within_max_new_tokens_expansions() -> None:
    prompts = [[token] for token in range(7)]
    search = dk.DepthFirst(max_nodes=5)
    assert dk.decode(HashModel(7), prompts, search, max_new_tokens=5, end_ids=()).valid.all()


def test_it_expands_at_least_as_many_nodes_as_best_first_search() -> None:
    prompts = [[token, other] for token in range(6) for other in range(6)]
    nodes = []
    for search in (dk.BestFirst(), dk.DepthFirst()):
        report = dk.decode(HashModel(6, 1, end_ids=(0,)), prompts, search, max_new_tokens=5).report
        assert isinstance(report, dk.Certificate)
        assert report.nodes is not None
        nodes.append(report.nodes)
    assert (nodes[0] <= nodes[1]).all()
    assert (nodes[0] < nodes[1]).any()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: dk.DepthFirst(scorer=None), TypeError, "scorer must be a Scorer or PathScorer"),  # type: ignore[arg-type]
        (
            lambda: dk.DepthFirst(num_return=0),
            ValueError,
            "num_return must be an integer of at least 1, got 0",
        ),
        (
            lambda: dk.DepthFirst(max_nodes=0),
            ValueError,
            "max_nodes must be an integer of at least 1, or None",
        ),
    ],
)
def test_options_out_of_range_are_refused(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"DepthFirst: .*{message}"):
        make()
