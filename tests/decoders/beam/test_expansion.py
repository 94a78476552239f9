"""Which continuations beam search looks at: solved by hand, and against slow references."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.engine.decode import decode_steps
from decodekit.testing import HashModel, MarkovModel, next_log_probs
from tests.conformance import Weakest

# Two good tokens that go on alike, and a poor one.
TWINS = MarkovModel(
    [
        [0.0, 0.5, 0.4, 0.1],
        [0.0, 0.46, 0.44, 0.1],
        [0.0, 0.1, 0.2, 0.7],
        [0.4, 0.2, 0.2, 0.2],
    ]
)


def both(expansion: dk.Expansion, new: int = 2, beams: int = 2) -> list[list[int]]:
    search = dk.BeamSearch(
        beams, expansion=expansion, scorer=dk.LogProb(), num_return=beams, stop_rule=dk.WhenFull()
    )
    return dk.decode(TWINS, [[0]], search, max_new_tokens=new).hypotheses()[0]


def test_best_expansion_takes_the_best_whoever_their_parent_is() -> None:
    assert both(dk.BestExpansion()) == [[2, 3], [1, 1]]
    assert both(dk.BestExpansion(), beams=3) == [[2, 3], [1, 1], [1, 2]]


def test_per_node_expansion_takes_some_of_each_parent() -> None:
    # 0.28 of [2, 3], then one child of each of the others: [1, 1] and [3, 0].
    assert both(dk.PerNodeExpansion(1), beams=3) == [[2, 3], [1, 1], [3, 0]]
    assert both(dk.PerNodeExpansion(2), beams=3) == both(dk.BestExpansion(), beams=3)


def test_sampled_expansion_draws_in_any_order_and_returns_the_best_drawn_first() -> None:
    sums = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    seen = set()
    for seed in range(200):
        picked = dk.SampledExpansion(torch.Generator().manual_seed(seed)).pick(sums[None, None], 2)
        assert picked.priority.tolist() == sums[picked.flat].tolist()
        assert picked.priority[0, 0] >= picked.priority[0, 1]
        seen.add(tuple(picked.flat[0].tolist()))
    assert seen == {(1, 3), (1, 2), (1, 0), (3, 2), (3, 0), (2, 0)}


def test_diverse_siblings_costs_every_rank_the_same() -> None:
    # [1, 2] is nearly as good as [1, 1], but second among its siblings.
    assert both(dk.DiverseSiblings(0.0), beams=3) == both(dk.BestExpansion(), beams=3)
    # log 0.22 - 1 = -2.51 for [1, 2], log 0.04 = -3.22 for [3, 0]; at 2 that wins.
    assert both(dk.DiverseSiblings(1.0), beams=3) == [[2, 3], [1, 1], [1, 2]]
    step = dk.decode(
        TWINS, [[0]], dk.BeamSearch(3, expansion=dk.DiverseSiblings(3.0), num_return=3), max_new_tokens=2
    )
    assert step.hypotheses()[0][:2] == [[2, 3], [1, 1]]


def test_the_penalty_of_siblings_is_not_part_of_the_sums() -> None:
    search = dk.BeamSearch(2, expansion=dk.DiverseSiblings(1.5), scorer=dk.LogProb(), num_return=2)
    out = dk.decode(HashModel(6), [[1], [2, 3]], search, max_new_tokens=5)
    torch.testing.assert_close(out.score, out.log_prob)


def slow_siblings(
    model: HashModel, prompt: list[int], beams: int, penalty: float, new: int
) -> list[list[int]]:
    """Li, Monroe & Jurafsky's step with lists: rank the children of each beam, then all of them."""
    log_probs = next_log_probs(model)
    live: list[tuple[list[int], float]] = [([], 0.0)]
    for _ in range(new):
        ranked = []
        for tokens, total in live:
            added = log_probs(prompt + tokens)
            order = sorted(range(len(added)), key=lambda token: -added[token])
            ranked += [
                (total + added[token] - penalty * rank, [*tokens, token], total + added[token])
                for rank, token in enumerate(order)
            ]
        ranked.sort(key=lambda entry: -entry[0])
        live = [(tokens, total) for _, tokens, total in ranked[:beams]]
    return [tokens for tokens, _ in sorted(live, key=lambda entry: -entry[1])]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), beams=st.integers(1, 4), penalty=st.sampled_from([0.0, 0.3, 1.0, 4.0]))
def test_diverse_siblings_equals_the_slow_reference(seed: int, beams: int, penalty: float) -> None:
    model, new = HashModel(5, seed), 3
    search = dk.BeamSearch(
        beams, expansion=dk.DiverseSiblings(penalty), scorer=dk.LogProb(), num_return=beams
    )
    out = dk.decode(model, [[1, 2], [3]], search, max_new_tokens=new)
    for number, prompt in enumerate([[1, 2], [3]]):
        assert slow_siblings(model, prompt, beams, penalty, new) == out.hypotheses()[number]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), beams=st.integers(1, 4), children=st.integers(1, 6))
def test_no_beam_has_more_children_than_allowed(seed: int, beams: int, children: int) -> None:
    model = HashModel(5, seed)
    search = dk.BeamSearch(beams, expansion=dk.PerNodeExpansion(children))
    steps = decode_steps(model, [[1], [2]], search, max_new_tokens=4)
    for progress in steps:
        exists = progress.state.log_probs.flatten() > -torch.inf
        parents = progress.selection.source_rows
        assert parents is not None
        if progress.number > 1 and exists.any():
            assert parents[exists].bincount().max() <= children


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    new=st.integers(1, 5),
)
def test_the_width_follows_its_schedule(seed: int, widths: list[int], new: int) -> None:
    model = HashModel(5, seed, end_ids=(2,))
    search = dk.BeamSearch(widths)
    steps = decode_steps(model, [[1], [2, 2]], search, max_new_tokens=new)
    for progress in steps:
        live = (progress.state.log_probs > -torch.inf).sum(-1)
        assert live.max() <= widths[min(progress.number, len(widths)) - 1]
        assert progress.state.log_probs.shape[1] == max(widths)


def test_a_schedule_of_one_width_is_that_width() -> None:
    model = HashModel(6, 4, end_ids=(2,))
    plain = dk.decode(model, [[1], [2, 2]], dk.BeamSearch(3, num_return=2), max_new_tokens=6)
    for widths in ([3], [3, 3, 3]):
        out = dk.decode(model, [[1], [2, 2]], dk.BeamSearch(widths, num_return=2), max_new_tokens=6)
        assert plain.hypotheses() == out.hypotheses()
        assert torch.equal(plain.score, out.score)


def test_the_width_one_is_greedy_search() -> None:
    model = HashModel(6, 4)
    narrow = dk.decode(model, [[1], [2, 2]], dk.BeamSearch([1, 1, 1]), max_new_tokens=6)
    assert dk.decode(model, [[1], [2, 2]], dk.Greedy(), max_new_tokens=6).hypotheses() == narrow.hypotheses()


def test_what_an_expansion_leaves_out_is_never_returned() -> None:
    class Even(dk.Expansion):
        def pick(self, log_probs: torch.Tensor, number: int) -> dk.ExpansionResult:
            odd = torch.arange(log_probs.shape[-1]) % 2 == 1
            return dk.BestExpansion().pick(log_probs.masked_fill(odd, -torch.inf), number)

    out = dk.decode(
        HashModel(5, 3), [[1], [2]], dk.BeamSearch(4, expansion=Even(), num_return=4), max_new_tokens=1
    )
    assert [[len(tokens) for tokens in hypotheses] for hypotheses in out.hypotheses()] == [[1] * 3] * 2
    assert {tokens[0] for hypotheses in out.hypotheses() for tokens in hypotheses} == {0, 2, 4}
    assert out.finish_reason[0] == ["length"] * 3 + ["missing"]


def test_an_expansion_that_picks_too_few_is_refused() -> None:
    class Three(dk.Expansion):
        def pick(self, log_probs: torch.Tensor, number: int) -> dk.ExpansionResult:
            del number
            return dk.BestExpansion().pick(log_probs, 3)

    with pytest.raises(dk.DecodekitError, match="must pick as many continuations as beams, or a multiple"):
        dk.decode(HashModel(5), [[1]], dk.BeamSearch(2, expansion=Three()), max_new_tokens=1)


@pytest.mark.parametrize("children", [0, -1, 1.0, True, "2", None])
def test_children_must_be_a_count(children: object) -> None:
    with pytest.raises(ValueError, match="PerNodeExpansion: children must be an integer of at least 1"):
        dk.PerNodeExpansion(children)  # type: ignore[arg-type]


@pytest.mark.parametrize("penalty", [-0.1, math.inf, math.nan, "1", None])
def test_the_penalty_must_be_a_finite_number(penalty: object) -> None:
    with pytest.raises(ValueError, match="DiverseSiblings: penalty must be a finite number of at least 0"):
        dk.DiverseSiblings(penalty)  # type: ignore[arg-type]


def test_the_generator_must_be_one() -> None:
    with pytest.raises(ValueError, match=r"SampledExpansion: generator must be a torch\.Generator, got 3"):
        dk.SampledExpansion(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("beams", [0, -1, 2.0, True, "3", [], [2, 0], [1.5]])
def test_beams_must_be_counts(beams: object) -> None:
    with pytest.raises(ValueError, match="BeamSearch: beams must be an integer of at least 1, or one a step"):
        dk.BeamSearch(beams)  # type: ignore[arg-type]


def test_no_more_is_returned_than_the_last_width_finishes() -> None:
    with pytest.raises(ValueError, match="num_return must be an integer from 1 to 2"):
        dk.BeamSearch([4, 2], num_return=3)


def test_what_an_expansion_picks_and_gives_no_priority_is_never_returned() -> None:
    class NotOdd(dk.Expansion):
        def pick(self, log_probs: torch.Tensor, number: int) -> dk.ExpansionResult:
            best = log_probs.flatten(1).topk(number)
            is_odd = best.indices % log_probs.shape[-1] % 2 == 1
            return dk.ExpansionResult(best.indices, best.values.masked_fill(is_odd, -torch.inf))

    for seed in range(5):
        search = dk.BeamSearch(4, expansion=NotOdd(), num_return=4)
        out = dk.decode(HashModel(5, seed), [[1], [2]], search, max_new_tokens=2)
        said = {token for hypotheses in out.hypotheses() for tokens in hypotheses for token in tokens}
        assert said <= {0, 2, 4}


class Neutral(Weakest):
    """Guides the search to where it would go anyway."""

    guides = True


@pytest.mark.parametrize("penalty", [0.5, 2.0])
def test_a_guided_search_keeps_what_an_expansion_takes_off(penalty: float) -> None:
    expansion = dk.DiverseSiblings(penalty)
    for seed in range(5):
        found = []
        for scorer in (Weakest(), Neutral()):
            search = dk.BeamSearch(3, expansion=expansion, scorer=scorer, num_return=3)
            found.append(dk.decode(HashModel(5, seed), [[1], [2, 3]], search, max_new_tokens=4).hypotheses())
        assert found[0] == found[1]
