"""Every decoder, with every scorer that it takes, under three processors, over a batch of four prompts.

The batch gives what each prompt alone gives; log-probabilities are those of a re-score; nothing outside a
constraint is returned, and where fewer texts are valid than were asked for, fewer come back, marked.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

import decodekit as dk
from decodekit.testing import HashModelWithOutputs

VOCAB, END, NEW = 5, 2, 4
PROMPTS = [[1], [3, 4], [4, 4, 0], [0, 1]]
STRINGS = [[3], [4, 1], [4, 3, 1]]  # all that a text may be, under the constraint

PROCESSORS: dict[str, dk.LogitsProcessor] = {
    "no repeated bigrams": dk.NoRepeatNGram(2),
    "repetition penalty and top-p": dk.RepetitionPenalty(1.3) | dk.Temperature(1.5) | dk.TopP(0.9),
    "a trie": dk.TrieConstraint(STRINGS, end_ids=END),
}
SCORERS: dict[str, dk.PathScorer] = {
    "length": dk.LengthPenalty(1.0),
    "sum": dk.LogProb(),
    "gnmt": dk.GNMTLengthPenalty(0.6),
    "reward": dk.WordReward(0.5),
    "bounded reward": dk.BoundedLengthReward(0.5, ratio=1.5),
    "brevity": dk.BrevityPenalty(ratio=1.5),
    "coverage": dk.CoveragePenalty(0.3, stepwise=True),
    "summary coverage": dk.SummaryCoveragePenalty(2.0),
    "uid variance": dk.UIDVariance(0.5),
    "uid local": dk.UIDLocalVariance(0.5),
    "uid maximum": dk.UIDMaximum(0.5),
    "uid squared": dk.UIDSquared(0.2),
    "weighted sum": dk.WeightedSum([dk.LogProb(), dk.UIDMaximum(0.5)], [1.0, 0.5]),
    "product": dk.Product([dk.LogProb(), dk.ScoreFunction(lambda _, lengths: 1.0 / lengths)]),
    "function": dk.ScoreFunction(lambda log_probs, lengths: log_probs - 0.1 * lengths),
}
Make = Callable[[list[int], dk.PathScorer], "dk.Decoder[Any] | dk.CustomLoop"]
# From the numbers of the prompts, which may be seeds, and a scorer.
SEARCHES: dict[str, Make] = {
    "beam search": lambda n, s: dk.BeamSearch(4, scorer=s, num_return=4),  # noqa: ARG005
    "diverse siblings": lambda n, s: dk.BeamSearch(  # noqa: ARG005
        4, scorer=s, expansion=dk.DiverseSiblings(0.5), stop_rule=dk.Proved(), num_return=3
    ),
    "per node, narrowing": lambda n, s: dk.BeamSearch(  # noqa: ARG005
        [4, 3, 2], scorer=s, expansion=dk.PerNodeExpansion(2), num_return=2
    ),
    "diverse groups": lambda n, s: dk.DiverseBeamSearch(4, 2, scorer=s, num_return=3),  # noqa: ARG005
    "constrained": lambda n, s: dk.ConstrainedBeamSearch(4, [dk.Phrase([1])], scorer=s, num_return=2),  # noqa: ARG005
    "best first": lambda n, s: dk.BestFirst(scorer=s, num_return=2, at_once=4),  # noqa: ARG005
    "depth first": lambda n, s: dk.DepthFirst(scorer=s, num_return=2),  # noqa: ARG005
}
OTHERS: dict[str, Callable[[list[int]], dk.Decoder[Any] | dk.CustomLoop]] = {
    "greedy": lambda n: dk.Greedy(),  # noqa: ARG005
    "sampling": lambda n: dk.Sample(3, seeds=n),
    "arithmetic sampling": lambda n: dk.ArithmeticSample(3, seeds=n),
    "sampling without replacement": lambda n: dk.UniqueSample(4, seeds=n),
    "stochastic beams": lambda n: dk.StochasticBeamSearch(4, seeds=n),
    "contrastive search": lambda n: dk.ContrastiveSearch(3, 0.5),  # noqa: ARG005
    "layers against each other": lambda n: dk.DoLa(layers=[1, 2], relative_top=0.0),  # noqa: ARG005
    "chain of thought": lambda n: dk.CoTDecoding(3),  # noqa: ARG005
    "speculation": lambda n: dk.Speculative(dk.PromptLookup(max_ngram=2), tokens=3),  # noqa: ARG005
}


def check(make: Callable[[list[int]], dk.Decoder[Any] | dk.CustomLoop], name: str) -> None:
    """All that the module says, of one decoder under one processor."""
    model, processor = HashModelWithOutputs(VOCAB, 7, scale=1.0, end_ids=(END,)), PROCESSORS[name]
    numbers = list(range(len(PROMPTS)))
    out = dk.decode(model, PROMPTS, make(numbers), processor, max_new_tokens=NEW)
    for number, prompt in enumerate(PROMPTS):
        alone = dk.decode(model, [prompt], make([number]), processor, max_new_tokens=NEW)
        assert alone.hypotheses()[0] == out.hypotheses()[number]
        assert alone.finish_reason[0] == out.finish_reason[number]
        assert torch.equal(alone.score[0], out.score[number])
        assert torch.equal(alone.log_prob[0], out.log_prob[number])
    rescored = dk.score(model, PROMPTS, out).log_prob  # as wide as the prompt with the most hypotheses
    valid_ones = out.valid[:, : rescored.shape[1]]
    torch.testing.assert_close(out.log_prob[:, : rescored.shape[1]][valid_ones], rescored[valid_ones])
    for number, (prompt, found) in enumerate(zip(PROMPTS, out.hypotheses(), strict=True)):
        valid = out.valid[number].tolist()
        assert valid == [True] * len(found) + [False] * (len(valid) - len(found))
        assert [reason == "missing" for reason in out.finish_reason[number]] == [
            not is_valid for is_valid in valid
        ]
        if name == "a trie":
            assert all(tokens in [[*string, END] for string in STRINGS] for tokens in found)
        if name == "no repeated bigrams":
            texts = [prompt + tokens for tokens in found]
            assert all(len(set(pairwise(t))) == len(t) - 1 for t in texts)


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("search", SEARCHES)
def test_searches(search: str, scorer: str, processor: str) -> None:
    check(lambda numbers: SEARCHES[search](numbers, SCORERS[scorer]), processor)


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("decoder", OTHERS)
def test_decoders_without_a_scorer(decoder: str, processor: str) -> None:
    check(OTHERS[decoder], processor)


@pytest.mark.parametrize("search", SEARCHES)
def test_no_text_is_returned_twice_where_few_are_valid(search: str) -> None:
    model = HashModelWithOutputs(VOCAB, 7, scale=1.0, end_ids=(END,))
    decoder = SEARCHES[search](list(range(len(PROMPTS))), dk.LengthPenalty(1.0))
    out = dk.decode(model, PROMPTS, decoder, PROCESSORS["a trie"], max_new_tokens=NEW)
    for found in out.hypotheses():
        assert len({tuple(tokens) for tokens in found}) == len(found)
        assert 1 <= len(found) <= len(STRINGS)
