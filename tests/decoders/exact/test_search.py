"""Exact search returns the best of all hypotheses, which are enumerated and scored one by one."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

import decodekit as dk
from decodekit.testing import HashModel, HashModelWithOutputs, MarkovModel, check_decoder, next_log_probs
from tests.conformance import Guiding, Weakest
from tests.decoders.exhaustive import all_texts, read_all, worth_of_all
from tests.equivalence.families import wrap
from tests.models.hf.test_model import rwkv

END = (0,)
SEARCHES: list[Callable[..., dk.BestFirst | dk.DepthFirst]] = [dk.BestFirst, dk.DepthFirst]
# Vocabulary, new tokens, prompts: a thousand random trees.
TREES = [(2, 5, 200), (3, 4, 150), (4, 3, 150), (5, 3, 40), (6, 2, 456), (5, 5, 4)]
SMALL_TREES = [(2, 4, 400), (3, 3, 200), (4, 2, 400)]
BOUNDED: list[dk.PathScorer] = [
    dk.LogProb(),
    dk.LengthPenalty(1.0),
    dk.LengthPenalty(-0.7),
    dk.GNMTLengthPenalty(0.6),
    dk.WordReward(0.7),
    dk.WordReward(-0.3, base=dk.LengthPenalty(0.5)),
    dk.BoundedLengthReward(0.8, ratio=0.5),
    dk.BrevityPenalty(ratio=0.6),
    dk.CoveragePenalty(0.2),
    dk.SummaryCoveragePenalty(3.0, base=dk.LengthPenalty(1.0)),
    dk.UIDVariance(0.5, base=dk.LengthPenalty(1.0)),
    dk.UIDLocalVariance(0.5),
    dk.UIDMaximum(0.5),
    dk.UIDSquared(0.2, base=dk.LengthPenalty(1.0)),
    dk.WeightedSum([dk.LengthPenalty(1.0), dk.UIDMaximum(1.0)], [1.0, 0.5]),
    dk.ScoreFunction(lambda sums, lengths: sums - lengths, lambda sums, lengths, _: sums - lengths),
    dk.Lookahead(HashModel(6), [dk.Phrase([1, 1]), dk.Phrase(0)], weight=0.0, steps=1, penalty=1.0),
    Weakest(),
    Guiding(),
]
UNBOUNDED: list[dk.PathScorer] = [
    dk.Product([dk.LogProb(), dk.LengthPenalty(0.5)]),
    dk.WeightedSum([dk.LogProb(), dk.LengthPenalty(1.0)], [1.0, -2.0]),
    dk.ScoreFunction(lambda sums, lengths: sums / lengths**2),
]


def prompts_of(vocab: int, number: int) -> tuple[tuple[int, ...], ...]:
    """Different prompts, of 3 to 9 tokens: each gives a different tree of a `HashModel`."""
    draws = torch.randint(vocab, (number, 9), generator=torch.Generator().manual_seed(vocab)).tolist()
    return tuple(tuple(row[: 3 + place % 7]) for place, row in enumerate(draws))


def several_at_once(**options: Any) -> dk.BestFirst:  # noqa: ANN401
    return dk.BestFirst(at_once=3, **options)


def certificate(out: dk.Decoded) -> dk.Certificate:
    assert isinstance(out.report, dk.Certificate)
    assert out.report.nodes is not None
    return out.report


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize("scorer", BOUNDED + UNBOUNDED, ids=lambda scorer: type(scorer).__name__)
def test_the_best_hypotheses_are_found_and_proved_in_a_thousand_trees(scorer: dk.PathScorer) -> None:
    for vocab, new, number in TREES if scorer in BOUNDED else SMALL_TREES:
        prompts, texts = prompts_of(vocab, number), all_texts(vocab, new, END)
        worth = worth_of_all(
            read_all(vocab, 7, prompts, new, END), texts, prompts, scorer, vocab=vocab, end_ids=END
        )
        best, places = worth.topk(3), texts.places()
        # The two algorithms differ in the order only, so fewer prompts will do for the second.
        for search, count in ((dk.BestFirst, number), (dk.DepthFirst, min(number, 50))):
            decoder = search(scorer=scorer, num_return=2)
            out = dk.decode(
                HashModelWithOutputs(vocab, 7), prompts[:count], decoder, max_new_tokens=new, end_ids=END
            )
            # The same sums, in the same order: equal to the last digit.
            assert torch.equal(best.values[:count, :2], out.score)
            assert certificate(out).proved.all()
            assert (certificate(out).bound <= out.score[:, 1]).all()
            assert (certificate(out).bound >= best.values[:count, 2]).all()
            found = torch.tensor([[places[tuple(text)] for text in row] for row in out.hypotheses()])
            assert torch.equal(worth[:count].gather(1, found), out.score)
            assert (found[:, 0] != found[:, 1]).all()


class Box:
    """A memory that cannot be stored, like the session of a model."""


class Boxed(dk.AdjustedScorer):
    """Subtracts squared surprisals. Its memory cannot be stored."""

    base = dk.BoundedLengthReward(0.1, ratio=1.0)

    def init_adjustment(self, history: dk.History, limits: dk.Limits) -> tuple[Box, Tensor]:  # noqa: ARG002
        return Box(), torch.zeros(len(history.tokens))

    def update_adjustment(
        self, extended: dk.ExtendedHypotheses, memory: tuple[Box, Tensor]
    ) -> tuple[Box, Tensor]:
        said = extended.history().last()
        return memory[0], memory[1] + extended.log_probs**2 * (1 + said % 2)

    def adjustment(self, lengths: Int64[Tensor, " hyps"], memory: tuple[Box, Tensor]) -> Tensor:  # noqa: ARG002
        return -0.1 * memory[1]

    def adjustment_bound(
        self,
        lengths: Int64[Tensor, " hyps"],
        max_length: int,  # noqa: ARG002
        memory: tuple[Box, Tensor],
    ) -> Tensor:
        return self.adjustment(lengths, memory)


class SeeingBoxed(Boxed):
    """The same, with a base scorer that reads attention."""

    base = dk.CoveragePenalty(0.1)  # type: ignore[assignment]


@pytest.mark.parametrize("scorer", [Boxed(), SeeingBoxed()])
def test_a_scorer_whose_memory_cannot_be_stored_reads_every_hypothesis_again(scorer: dk.PathScorer) -> None:
    prompts, texts = prompts_of(4, 20), all_texts(4, 4, END)
    emitted = read_all(4, 7, prompts, 4, END)
    worth = worth_of_all(emitted, texts, prompts, scorer, vocab=4, end_ids=END)
    for search in SEARCHES:
        decoder = search(scorer=scorer, num_return=3)
        out = dk.decode(HashModelWithOutputs(4, 7), prompts, decoder, max_new_tokens=4, end_ids=END)
        assert torch.equal(worth.topk(3).values, out.score)
        assert certificate(out).proved.all()


def test_the_best_hypotheses_are_found_with_six_tokens_and_five_steps() -> None:
    prompts, texts = prompts_of(6, 3), all_texts(6, 5, END)
    emitted = read_all(6, 3, prompts, 5, END)
    for scorer in (dk.LogProb(), dk.LengthPenalty(1.0), dk.UIDVariance(1.0)):
        worth = worth_of_all(emitted, texts, prompts, scorer, vocab=6, end_ids=END)
        for search in SEARCHES:
            decoder = search(scorer=scorer, num_return=5)
            out = dk.decode(HashModelWithOutputs(6, 3), prompts, decoder, max_new_tokens=5, end_ids=END)
            assert torch.equal(worth.topk(5).values, out.score)


TRAP = MarkovModel([[0.0, 0.6, 0.4, 0.0], [0.3, 0.3, 0.3, 0.1], [0.0, 0.0, 0.1, 0.9], [1.0, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize("search", SEARCHES)
def test_a_tree_that_misleads_greedy_search_is_solved(search: Callable[..., dk.CustomLoop]) -> None:
    # 0 -> 1 (.6) -> 1, 2 or 0 (.3) is .18; 0 -> 2 (.4) -> 3 (.9), the end, is .36.
    out = dk.decode(TRAP, [[0]], search(scorer=dk.LogProb()), max_new_tokens=2, end_ids=3)
    assert out.hypotheses() == [[[2, 3]]]
    assert out.finish_reason == [["end"]]
    torch.testing.assert_close(out.log_prob.exp(), torch.tensor([[0.36]]))
    torch.testing.assert_close(certificate(out).bound.exp(), torch.tensor([0.18]))
    # The prompt, then [1], whose bound is larger than that of [2], then [2].
    assert certificate(out).nodes is not None
    assert certificate(out).nodes.tolist() == [3]  # type: ignore[union-attr]
    assert certificate(out).gap.tolist() == [0.0]


@pytest.mark.parametrize("search", SEARCHES)
def test_where_fewer_hypotheses_exist_than_wanted_all_are_returned_and_proved(
    search: Callable[..., dk.CustomLoop],
) -> None:
    out = dk.decode(TRAP, [[2], [0]], search(num_return=5), max_new_tokens=2, end_ids=3)
    # From 2: 3; 2 2; 2 3. From 0: 1 0, 1 1, 1 2, 1 3; 2 2, 2 3.
    assert sorted(out.hypotheses()[0]) == [[2, 2], [2, 3], [3]]
    assert out.valid.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert out.finish_reason[0][3:] == ["missing", "missing"]
    assert out.score[0, 3:].tolist() == [-math.inf] * 2
    assert certificate(out).proved.tolist() == [True, True]


@pytest.mark.parametrize("search", SEARCHES)
def test_an_error_names_the_prompt_of_which_no_hypothesis_can_end(
    search: Callable[..., dk.CustomLoop],
) -> None:
    dead_end = MarkovModel([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    with pytest.raises(dk.DecodingError, match=r"every token is banned for prompt 1"):
        dk.decode(dead_end, [[0], [1]], search(), dk.SuppressTokens([2]), max_new_tokens=2)
    # Its only child is a dead end. Expanding two nodes finds this out, expanding one does not.
    banned = dk.SuppressTokens([0, 2])
    with pytest.raises(dk.DecodingError, match="every token is banned for prompt 0"):
        dk.decode(dead_end, [[0]], search(max_nodes=2), banned, max_new_tokens=2)
    assert not dk.decode(dead_end, [[0]], search(max_nodes=1), banned, max_new_tokens=2).valid.any()
    # The search backtracks from a dead end.
    ways = dk.decode(dead_end, [[0]], search(), dk.SuppressTokens([2]), max_new_tokens=2)
    assert ways.hypotheses()[0][0][0] == 0


class Broken(dk.StatelessProcessor):
    """Returns NaN after token 1."""

    def process(self, history: dk.History, scores: Float32[Tensor, "rows vocab"]) -> Tensor:
        return torch.where(history.last()[:, None] == 1, torch.nan, scores)


class Narrow(dk.StatelessProcessor):
    def process(self, history: dk.History, scores: Float32[Tensor, "rows vocab"]) -> Tensor:  # noqa: ARG002
        return scores[:, :1]


def test_scores_that_are_nan_or_of_another_shape_are_refused() -> None:
    with pytest.raises(dk.DecodingError, match="for prompt 1 some were NaN or infinite"):
        dk.decode(TRAP, [[0], [1]], dk.BestFirst(), Broken(), max_new_tokens=2)
    with pytest.raises(dk.DecodekitError, match=r"shape they were given, \(1, 4\)"):
        dk.decode(TRAP, [[0]], dk.BestFirst(), Narrow(), max_new_tokens=2)


@pytest.mark.parametrize("search", SEARCHES)
def test_at_most_max_nodes_are_expanded_and_the_gap_is_correct(search: Callable[..., dk.CustomLoop]) -> None:
    prompts, texts = prompts_of(4, 16), all_texts(4, 4, END)
    emitted = read_all(4, 7, prompts, 4, END)
    proved = 0
    for scorer in (dk.LogProb(), dk.LengthPenalty(1.0), dk.UIDVariance(0.5), UNBOUNDED[0]):
        worth = worth_of_all(emitted, texts, prompts, scorer, vocab=4, end_ids=END)
        best = worth.amax(-1)
        for budget in (1, 3, 9, 200):
            decoder = search(scorer=scorer, max_nodes=budget)
            out = dk.decode(HashModelWithOutputs(4, 7), prompts, decoder, max_new_tokens=4, end_ids=END)
            found = certificate(out)
            assert found.nodes is not None
            assert (found.nodes <= budget).all()
            assert torch.equal(found.worst, out.score[:, 0])
            assert (found.worst <= best).all()
            assert (best <= torch.maximum(found.bound, found.worst)).all()
            assert torch.equal(found.proved, found.gap == 0)
            assert torch.equal(out.score[found.proved, 0], best[found.proved])
            assert (found.nodes[~found.proved] == budget).all()
            assert (found.proved.all()) == (budget == 200) or budget == 9
            assert out.valid[:, 0].tolist() == [reason != "missing" for (reason,) in out.finish_reason]
            proved += int(found.proved.sum())
    assert proved > 80


@pytest.mark.parametrize("search", SEARCHES)
def test_a_budget_too_small_for_any_hypothesis_returns_none_and_the_bound(
    search: Callable[..., dk.CustomLoop],
) -> None:
    out = dk.decode(TRAP, [[0]], search(scorer=dk.LogProb(), max_nodes=1), max_new_tokens=3)
    assert out.hypotheses() == [[]]
    assert out.finish_reason == [["missing"]]
    assert out.lengths.tolist() == [[0]]
    torch.testing.assert_close(certificate(out).bound.exp(), torch.tensor([0.6]))
    assert certificate(out).worst.tolist() == [-math.inf]
    assert certificate(out).gap.tolist() == [math.inf]
    assert not certificate(out).proved.any()


class Fading(dk.LogitsProcessor):
    """Subtracts the probabilities of the step before, which it remembers."""

    def init(self, history: dk.History) -> Float32[Tensor, "rows 4"]:
        return torch.zeros(len(history.tokens), 4)

    def apply(
        self, history: dk.History, scores: Float32[Tensor, "rows 4"], memory: Float32[Tensor, "rows 4"]
    ) -> tuple[Float32[Tensor, "rows 4"], Float32[Tensor, "rows 4"]]:
        return scores - 3 * memory, scores.softmax(-1) + history.last()[:, None] % 2


CHAINS: dict[str, Callable[[int], Any]] = {
    "no processor": lambda _: dk.Chain(),
    "NoRepeatNGram": lambda _: dk.NoRepeatNGram(2),
    "BadWords": lambda _: dk.BadWords([[1, 2], [3]]),
    "DRY": lambda _: dk.DRY(0.7, allowed_length=1),
    "several": lambda _: dk.NoRepeatNGram(3) | dk.BadWords([[1, 2]]) | dk.MinNewTokens(2, end_ids=0),
    "Temperature": lambda batch: dk.Temperature([0.5 + 0.1 * number for number in range(batch)]),
    "TrieConstraint": lambda _: dk.TrieConstraint([[1, 2, 1], [1, 3], [2], [3, 3, 3]], end_ids=0),
    "PresencePenalty": lambda _: dk.PresencePenalty(0.5),
    "MirostatV2": lambda _: dk.MirostatV2(2.0),
    "ContrastiveGuidance": lambda _: dk.Chain(
        dk.ContrastiveGuidance(HashModel(4, 99), alpha=0.01), dk.Renormalize()
    ),
    "a memory": lambda _: Fading(),
    "a memory and a second model": lambda _: dk.Chain(
        Fading(), dk.ContrastiveGuidance(HashModel(4, 99), alpha=0.01), dk.Renormalize(), dk.MirostatV2(3.0)
    ),
    "Ensemble": lambda _: dk.Ensemble([HashModel(4, 5)]),
}


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize("name", CHAINS)
def test_processors_see_every_hypothesis_as_in_the_main_loop(name: str) -> None:
    prompts, texts = prompts_of(4, 12), all_texts(4, 4, END)
    chain = CHAINS[name](len(prompts))
    emitted = read_all(4, 7, prompts, 4, END)
    for scorer in (dk.LogProb(), dk.UIDVariance(0.5)):
        worth = worth_of_all(emitted, texts, prompts, scorer, chain, vocab=4, end_ids=END)
        for search in (*SEARCHES, several_at_once):
            decoder = search(scorer=scorer, num_return=2)
            out = dk.decode(
                HashModelWithOutputs(4, 7), prompts, decoder, chain, max_new_tokens=4, end_ids=END
            )
            # The second model reads other batches: its log-probabilities may differ in the last digit.
            torch.testing.assert_close(worth.topk(2).values, out.score, atol=1e-5, rtol=1e-5)
            assert certificate(out).proved.all()
            rescored = dk.score(HashModelWithOutputs(4, 7), prompts, out)
            torch.testing.assert_close(rescored.log_prob, out.log_prob, atol=1e-5, rtol=1e-5)


def test_all_hypotheses_match_the_grammar() -> None:
    model = dk.load()
    grammar = dk.Grammar.regex("(a|the) (king|queen)", model.vocabulary)
    prompts = ["Once upon a time there was ", "She saw "]
    found = [
        dk.decode(model, prompts, search(scorer=dk.LogProb(), num_return=2), grammar, max_new_tokens=20)
        for search in SEARCHES
    ]
    for out in found:
        assert certificate(out).proved.all()
        assert {text for texts in out.texts or [] for text in texts} <= {
            "a king",
            "a queen",
            "the king",
            "the queen",
        }
        torch.testing.assert_close(found[0].score, out.score)


@pytest.mark.parametrize("search", SEARCHES)
def test_with_log_probs_above_0_the_search_is_exhaustive(search: Callable[..., dk.CustomLoop]) -> None:
    prompts, texts = prompts_of(4, 40), all_texts(4, 3, END)
    emitted = read_all(4, 7, prompts, 3, END)
    rewards = dk.SequenceBias({(2,): 15.0, (3, 3): 20.0, (1, 3): -2.0})
    worth = worth_of_all(emitted, texts, prompts, dk.LogProb(), rewards, vocab=4, end_ids=END)
    for budget in (None, 2):
        decoder = search(scorer=dk.LogProb(), max_nodes=budget)
        out = dk.decode(HashModelWithOutputs(4, 7), prompts, decoder, rewards, max_new_tokens=3, end_ids=END)
        found = certificate(out)
        assert found.nodes is not None
        if budget is None:
            assert torch.equal(worth.amax(-1), out.score[:, 0])
            assert found.nodes.tolist() == [1 + 3 + 9] * 40
            assert found.proved.all()
        else:
            assert found.bound.tolist() == [math.inf] * 40
            assert not found.proved.any()


def test_a_log_prob_above_0_invalidates_the_bound_of_nodes_pruned_before() -> None:
    # [1] ends at once with .4, and [2] (.05) is pruned. Then a reward follows after [0] (.55).
    model = MarkovModel([[0.9, 0.1, 0.0], [1.0, 0.0, 0.0], [0.55, 0.4, 0.05]])
    reward = dk.SequenceBias({(0, 0): 2.0})
    for search in SEARCHES:
        out = dk.decode(model, [[2]], search(scorer=dk.LogProb()), reward, max_new_tokens=2, end_ids=1)
        assert out.hypotheses() == [[[0, 0]]]
        assert certificate(out).bound.tolist() == [math.inf]
        assert not certificate(out).proved.any()
        made_safe = [reward, dk.Renormalize()]
        out = dk.decode(model, [[2]], search(scorer=dk.LogProb()), made_safe, max_new_tokens=2, end_ids=1)
        assert out.hypotheses() == [[[0, 0]]]
        assert certificate(out).proved.all()


class LastTwo(dk.StoppingCriterion):
    """Finishes a hypothesis whose last two tokens are equal. Remembers the last one."""

    reason = "twice"

    def init(self, history: dk.History, run: dk.StoppingContext) -> Int64[Tensor, " rows"]:  # noqa: ARG002
        return torch.full((len(history.tokens),), -1)

    def apply(
        self,
        history: dk.History,
        log_probs: Float32[Tensor, " rows"],  # noqa: ARG002
        memory: Int64[Tensor, " rows"],
    ) -> tuple[Bool[Tensor, " rows"], Int64[Tensor, " rows"]]:
        return history.last() == memory, history.last()


@pytest.mark.parametrize("search", SEARCHES)
def test_stopping_criteria_finish_hypotheses(search: Callable[..., dk.CustomLoop]) -> None:
    prompts = prompts_of(4, 8)
    for stop in (LastTwo(), dk.StopWhen(lambda ids: len(ids) > 1 and ids[-1] == ids[-2], ids=True)):
        out = dk.decode(
            HashModelWithOutputs(4, 7),
            prompts,
            search(scorer=dk.LogProb(), num_return=3),
            max_new_tokens=4,
            end_ids=END,
            stop=stop,
        )
        for number, (prompt, found) in enumerate(zip(prompts, out.hypotheses(), strict=True)):
            every = texts_that_end_at_a_repeat(prompt)
            best = sorted(every.values(), reverse=True)[:3]
            torch.testing.assert_close(torch.tensor(best), out.score[number], atol=1e-5, rtol=1e-5)
            for text, reason in zip(found, out.finish_reason[number], strict=True):
                assert every[tuple(text)] == pytest.approx(best[found.index(text)], abs=1e-5)
                assert (reason == stop.reason) == (len(text) > 1 and text[-1] == text[-2])
        assert any(stop.reason in reasons for reasons in out.finish_reason)


def texts_that_end_at_a_repeat(prompt: tuple[int, ...]) -> dict[tuple[int, ...], float]:
    log_probs, texts = next_log_probs(HashModelWithOutputs(4, 7)), {}
    waiting: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for text, total in waiting:
        if len(text) == 4 or text[-1:] == END or (len(text) > 1 and text[-1] == text[-2]):
            texts[text] = total
        else:
            added = enumerate(log_probs([*prompt, *text]))
            waiting += [((*text, token), total + log_prob) for token, log_prob in added]
    return texts


def test_laws_hold_with_stopping_criteria_and_with_attention() -> None:
    for decoder in (
        dk.BestFirst(scorer=dk.LogProb(), num_return=3, at_once=2),
        dk.BestFirst(beams=2, num_return=2),
        dk.DepthFirst(scorer=dk.UIDVariance(0.5), num_return=2, max_nodes=20),
    ):
        check_decoder(decoder, stop=dk.EndIds(4) | dk.RepetitionLoop(2), max_examples=2)
    seeing = dk.BestFirst(scorer=dk.CoveragePenalty(0.1), max_nodes=10)
    check_decoder(seeing, model=HashModelWithOutputs, max_examples=2)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_model_must_return_the_outputs_that_the_scorer_requires(
    search: Callable[..., dk.CustomLoop],
) -> None:
    with pytest.raises(
        dk.DecodekitError, match=r"(Best|Depth)First needs a model that returns ModelOutputsSpec"
    ):
        dk.decode(HashModel(4), [[1]], search(scorer=dk.CoveragePenalty(0.1)), max_new_tokens=2)


@pytest.mark.parametrize("family", ["gpt2", "t5", "bart", "marian"])
def test_transformers_models_give_the_hypotheses_of_a_wide_beam_search(family: str) -> None:
    """Nodes of different lengths, with their sources, against a beam search that prunes nothing."""
    model, prompts = wrap(family), [[8, 9, 10, 11], [12], [13, 14]]
    few = dk.SuppressTokens([token for token in range(37) if token not in {2, 20, 30}])
    beams = dk.BeamSearch(64, num_return=4, stop_rule=dk.Proved())
    expected = dk.decode(model, prompts, beams, few, max_new_tokens=3)
    for search in (*SEARCHES, several_at_once):
        out = dk.decode(model, prompts, search(num_return=4), few, max_new_tokens=3)
        assert expected.hypotheses() == out.hypotheses()
        torch.testing.assert_close(expected.score, out.score)
        torch.testing.assert_close(dk.score(model, prompts, out).log_prob, out.log_prob)


def test_a_model_that_supports_neither_padding_nor_reordering_can_be_searched() -> None:
    plain = rwkv()
    plain.head.weight.data.mul_(40)  # peaked enough that nodes of different lengths are in the queue
    model, prompts, ids = dk.HFModel(plain), [[5, 6], [7, 8]], [4, 9, 11]
    few = dk.SuppressTokens([token for token in range(61) if token not in ids])
    strings = {text[: [*text, 4].index(4) + 1] for text in itertools.product(ids, repeat=4)}
    every = [list(text) for text in sorted(strings)]
    means = dk.score(model, prompts, [every] * 2).log_prob / torch.tensor([len(text) for text in every])
    for search in (*SEARCHES, several_at_once):
        out = dk.decode(model, prompts, search(num_return=3), few, max_new_tokens=4, end_ids=4)
        torch.testing.assert_close(means.topk(3).values, out.score)
        with pytest.raises(dk.ModelError, match="does not ignore left padding"):
            dk.decode(model, [[5, 6], [7]], search(), few, max_new_tokens=3)
