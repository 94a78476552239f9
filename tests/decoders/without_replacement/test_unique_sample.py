"""Sampling without replacement, one sample after the other."""

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float32, Int64
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import decodekit as dk
from decodekit import rng
from decodekit.decoders.without_replacement import unique_sample
from decodekit.decoders.without_replacement.unique_sample import NextTokens, TrieNode
from decodekit.testing import HashModel, MarkovModel, check_decoder
from decodekit.testing.strategies import prompts
from tests.decoders.enumerated import every_text

Text = tuple[int, ...]

COIN = MarkovModel([[0.25, 0.75], [0.25, 0.75]])
MODEL = MarkovModel([[0.6, 0.4], [0.2, 0.8]])  # four texts of two tokens, twelve pairs of them
# 99.99 % quantiles of the chi-square distribution, by degrees of freedom.
CHI_SQUARE = {3: 21.11, 11: 37.37}


def chi_square(counts: Counter[Any], probs: dict[Any, float]) -> float:
    """The chi-square statistic of counts."""
    assert not counts.keys() - probs.keys()
    total = counts.total()
    return sum((counts[key] - total * p) ** 2 / (total * p) for key, p in probs.items())


def begins(text: Text, beginning: Text) -> bool:
    return text[: len(beginning)] == beginning


def draw_slowly(
    texts: dict[Text, float], vocab: int, seed: int, number: int, parallel: int
) -> list[tuple[Text, float]]:
    """Samples without replacement from an enumeration, and the unsampled mass before each: no trie, no model.

    The random numbers are those of the decoder, hence the samples too.
    """
    remaining, samples, begun = dict(texts), list[tuple[Text, float]](), 0
    while remaining and len(samples) < number:
        drawn = []
        for draw in range(begun, begun + parallel):
            emitted: Text = ()
            while emitted not in remaining:
                masses = [
                    sum(mass for text, mass in remaining.items() if begins(text, (*emitted, token)))
                    for token in range(vocab)
                ]
                weights = torch.tensor([masses], dtype=torch.float64)
                one = torch.tensor([seed]), torch.tensor([draw]), torch.tensor(len(emitted))
                emitted = (*emitted, int(rng.draw_seeded(weights, *one)))
            drawn.append(emitted)
        begun += parallel
        for emitted in drawn:
            if emitted in remaining and len(samples) < number:
                samples.append((emitted, sum(remaining.values())))
                del remaining[emitted]
    return samples


def test_both_sides_of_a_biased_coin_are_drawn_until_nothing_remains() -> None:
    out = dk.decode(COIN, [[0]], dk.UniqueSample(3, seeds=[1]), max_new_tokens=1)
    assert out.hypotheses() == [[[1], [0]]]
    assert out.finish_reason == [["length", "length", "missing"]]
    assert out.valid.tolist() == [[True, True, False]]
    assert out.lengths.tolist() == [[1, 1, 0]]
    assert out.tokens[0, 2].tolist() == [0]
    assert out.score[0, 2] == out.log_prob[0, 2] == -torch.inf
    report = out.report
    assert isinstance(report, dk.SampledMass)
    torch.testing.assert_close(report.log_probs.exp(), torch.tensor([[0.75, 0.25, 0.0]]).double())
    torch.testing.assert_close(report.unsampled, torch.tensor([[1.0, 0.25, 0.0]]).double())
    assert report.remaining.tolist() == [0.0]
    assert report.exhausted.tolist() == [True]
    assert report.dead_ends == [[]]


CHAINS = {
    "nothing": dk.Chain(),
    "a filter": dk.Chain(dk.Temperature(1.5), dk.TopP(0.8)),
    "the text": dk.Chain(dk.NoRepeatNGram(2), dk.RepetitionPenalty(1.5)),
    "a memory of scores": dk.Chain(dk.MirostatV2(1.0, 0.5)),
    "a second model": dk.Chain(dk.ClassifierFreeGuidance(HashModel(4, 9), 2.0), dk.TopK(3)),
    "a second model with a memory beside it": dk.Chain(
        dk.MirostatV1(1.0, 0.5), dk.DExperts(HashModel(4, 8), HashModel(4, 9), 0.5)
    ),
}


@pytest.mark.mostly_slow(6)
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**31), number=st.sampled_from([1, 3, 8, 100]), parallel=st.sampled_from([1, 4]))
def test_samples_and_masses_equal_those_of_sampling_from_an_enumeration(
    chain: dk.Chain, seed: int, number: int, parallel: int
) -> None:
    model = HashModel(4, seed, scale=1.0, end_ids=(2,))
    batch = [[1], [3, 0]]
    sample = dk.UniqueSample(number, parallel=parallel, seeds=[seed, 5])
    out = dk.decode(model, batch, sample, chain, max_new_tokens=3)
    for row, prompt in enumerate(batch):
        texts = every_text(model, prompt, chain, 3, (2,))
        expected = draw_slowly(texts, 4, (seed, 5)[row], number, parallel)
        got = [tuple(text) for text in out.hypotheses()[row]]
        assert [text for text, _ in expected] == got
        masses = torch.tensor([texts[text] for text in got], dtype=torch.float64)
        # The sums are in another order.
        torch.testing.assert_close(out.report.log_probs[row, : len(got)].exp(), masses)
        remaining = torch.tensor([remaining for _, remaining in expected], dtype=torch.float64)
        torch.testing.assert_close(out.report.unsampled[row, : len(got)], remaining)
        assert bool(out.report.exhausted[row]) == (len(texts) <= number)


@pytest.mark.parametrize("parallel", [1, 5])
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_when_nothing_remains_every_hypothesis_has_been_drawn(chain: dk.Chain, parallel: int) -> None:
    model = HashModel(4, 3, scale=1.0, end_ids=(2,))
    sample = dk.UniqueSample(100, parallel=parallel, seeds=[3])
    out = dk.decode(model, [[1]], sample, chain, max_new_tokens=3)
    texts = every_text(model, [1], chain, 3, (2,))
    assert set(map(tuple, out.hypotheses()[0])) == texts.keys()
    assert int(out.valid.sum()) == len(texts)
    assert float(out.report.log_probs.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert out.report.remaining.tolist() == [0.0]


def first_two(parallel: int = 1, batch: int = 500) -> Counter[Any]:
    """Counts of the first two samples."""
    sample = dk.UniqueSample(2, parallel=parallel, seeds=range(batch))
    out = dk.decode(MODEL, [[0]] * batch, sample, max_new_tokens=2)
    return Counter(tuple(map(tuple, texts)) for texts in out.hypotheses())


def probs_of_pairs() -> dict[Any, float]:
    texts = every_text(MODEL, [0], dk.Chain(), 2)
    return {
        (first, second): texts[first] * texts[second] / (1 - texts[first])
        for first, second in itertools.permutations(texts, 2)
    }


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [1, 3])
def test_the_first_sample_follows_the_model_and_pairs_follow_sampling_without_replacement(
    parallel: int,
) -> None:
    counts = first_two(parallel)
    assert chi_square(counts, probs_of_pairs()) < CHI_SQUARE[11]
    firsts: Counter[Any] = Counter()
    for (first, _), number in counts.items():
        firsts[first] += number
    assert chi_square(firsts, every_text(MODEL, [0], dk.Chain(), 2)) < CHI_SQUARE[3]


def test_a_trie_that_subtracts_only_fully_sampled_subtrees_fails_the_same_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unsampled_probs = TrieNode.unsampled_probs

    def forgets(self: TrieNode, next_tokens: NextTokens) -> Tensor:
        fractions = {place: child.unsampled for place, child in self.children.items()}
        for child in self.children.values():
            child.unsampled = float(child.unsampled > 0)
        probs = unsampled_probs(self, next_tokens)
        for place, child in self.children.items():
            child.unsampled = fractions[place]
        return probs

    monkeypatch.setattr(TrieNode, "unsampled_probs", forgets)
    assert chi_square(first_two(), probs_of_pairs()) > CHI_SQUARE[11]


@settings(max_examples=8, deadline=None)
@given(batch=prompts(vocab=6, max_batch=4), seed=st.integers(0, 2**31), parallel=st.integers(1, 3))
def test_with_seeds_a_prompts_samples_depend_neither_on_the_batch_nor_on_their_number(
    batch: list[list[int]], seed: int, parallel: int
) -> None:
    model, chain = HashModel(6, seed, end_ids=(2,)), [dk.NoRepeatNGram(2), dk.TopP(0.95)]
    seeds = [seed + number for number in range(len(batch))]
    sample = dk.UniqueSample(4, parallel=parallel, seeds=seeds)
    together = dk.decode(model, batch, sample, chain, max_new_tokens=4)
    for number, prompt in enumerate(batch):
        alone = dk.UniqueSample(2, parallel=parallel, seeds=[seeds[number]])
        out = dk.decode(model, [prompt], alone, chain, max_new_tokens=4)
        assert together.hypotheses()[number][:2] == out.hypotheses()[0]
        assert torch.equal(together.report.unsampled[number, :2], out.report.unsampled[0])


class RecordingModel:
    """A model that records every sequence whose logits it computes."""

    def __init__(self, model: HashModel) -> None:
        self._model = model
        self.vocabulary = model.vocabulary
        self.computed: list[Text] = []

    def start(
        self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple["RecordingSession", Float32[Tensor, "rows vocab"]]:
        session, logits = self._model.start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)
        self.computed += map(tuple, prompt.ids())
        return RecordingSession(self, session, prompt.ids()), logits


class RecordingSession:
    def __init__(self, model: RecordingModel, session: dk.Session, texts: list[list[int]]) -> None:
        self._model, self._session, self._texts = model, session, texts

    def advance(
        self, tokens: Int64[Tensor, " rows"], source_rows: Int64[Tensor, " rows"] | None
    ) -> Float32[Tensor, "rows vocab"]:
        for text, token in zip(self._texts, tokens.tolist(), strict=True):
            text.append(token)
        self._model.computed += map(tuple, self._texts)
        return self._session.advance(tokens, source_rows)


def test_no_logits_are_computed_twice() -> None:
    model = RecordingModel(HashModel(4, 3, scale=1.0, end_ids=(2,)))
    out = dk.decode(model, [[1]], dk.UniqueSample(30, seeds=[3]), max_new_tokens=4)
    visited = {(1, *text[:length]) for text in out.hypotheses()[0] for length in range(len(text))}
    assert sorted(visited) == sorted(model.computed)


def test_stored_and_recomputed_memories_give_the_same_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, chain = HashModel(5, 3, end_ids=(2,)), [dk.MirostatV2(1.0, 0.5), dk.NoRepeatNGram(2)]
    outs = []
    for _ in range(2):
        sample = dk.UniqueSample(9, parallel=3, seeds=[3, 4])
        outs.append(dk.decode(model, [[1], [3]], sample, chain, max_new_tokens=5))
        monkeypatch.setattr(unique_sample, "tree_leaves", lambda _: [object()])
    assert outs[0].hypotheses() == outs[1].hypotheses()
    assert torch.equal(outs[0].report.unsampled, outs[1].report.unsampled)


def test_samples_match_the_grammar_and_end_at_stop_strings() -> None:
    """Matchers on the host and criteria that read strings, over the bundled model."""
    model = dk.load()
    grammar = dk.Grammar.regex(r"[!-%]{1,2}", model.vocabulary)
    out = dk.decode(
        model, ["Once", "A dog"], dk.UniqueSample(40, seeds=[1, 2]), grammar, max_new_tokens=4, stop="#"
    )
    for texts, ids in zip(out.texts or [], out.hypotheses(), strict=True):
        assert len(set(map(tuple, ids))) == len(ids)
        assert all(len(text) <= 2 and "#" not in text for text in texts)
    assert {"string", "end"} >= {reason for row in out.finish_reason for reason in row} - {"missing"}
    assert out.report.exhausted.all()


def test_dead_ends_are_set_aside() -> None:
    """No token may follow 0, so every hypothesis has its only 0 at the end."""
    model = MarkovModel([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [0.5, 0.25, 0.25]])
    chain = dk.Chain(dk.BadWords([[0, 0]]))
    out = dk.decode(model, [[1]], dk.UniqueSample(9, seeds=[2]), chain, max_new_tokens=2)
    assert sorted(out.hypotheses()[0]) == [[1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]]
    assert float(out.report.log_probs.exp().sum()) == pytest.approx(0.8)
    assert out.report.exhausted.tolist() == [True]
    assert len(out.report.dead_ends[0]) == 1
    assert out.report.dead_ends[0][0] in {1.0, *out.report.unsampled[0].tolist()}
    # Samples are weighted by probability; the dead end counts 0.
    assert out.report.expectation(torch.ones(1, 9)).item() == pytest.approx(0.8)
    assert out.report.expectation(torch.ones(1, 9), normalize=True).item() == pytest.approx(1.0)


def test_an_error_names_the_prompt_of_which_no_hypothesis_can_end() -> None:
    all_banned = MarkovModel([[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(dk.DecodingError, match="every token is banned for prompt 1"):
        dk.decode(
            all_banned, [[0], [1]], dk.UniqueSample(2, seeds=[1, 2]), dk.SuppressTokens([1]), max_new_tokens=2
        )


def test_scores_that_are_not_numbers_are_refused() -> None:
    class Broken(dk.StatelessProcessor):
        def process(
            self,
            history: dk.History,  # noqa: ARG002 - the contract's signature
            scores: Float32[Tensor, "rows vocab"],
        ) -> Float32[Tensor, "rows vocab"]:
            return scores * torch.nan

    with pytest.raises(dk.DecodingError, match="scores must be numbers below infinity, but for prompt 0"):
        dk.decode(COIN, [[0]], dk.UniqueSample(2), Broken(), max_new_tokens=2)


def test_no_position_beyond_the_last_is_computed() -> None:
    """Rounds start at different depths, and finished rows continue: none runs past the last position."""
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=7, n_embd=16, n_layer=1, n_head=2, n_positions=8, eos_token_id=2)
    model = dk.HFModel(GPT2LMHeadModel(config).eval())
    batch = [[1, 3, 4], [5], [6, 0]]
    out = dk.decode(model, batch, dk.UniqueSample(12, seeds=[1, 2, 3]), max_new_tokens=6)
    scored = dk.score(model, batch, out)
    # Single precision, in passes of other shapes.
    torch.testing.assert_close(scored.token_log_probs, out.token_log_probs, atol=1e-5, rtol=1e-5)
    for number, prompt in enumerate(batch):
        alone = dk.decode(model, [prompt], dk.UniqueSample(12, seeds=[number + 1]), max_new_tokens=6)
        assert out.hypotheses()[number] == alone.hypotheses()[0]


def test_a_generator_draws_the_seeds_and_is_the_global_stream_if_not_given() -> None:
    model = HashModel(9)
    given_one = dk.UniqueSample(3, generator=torch.Generator().manual_seed(3))
    ours = dk.decode(model, [[1], [2]], given_one, max_new_tokens=6)
    again = dk.decode(model, [[1], [2]], given_one, max_new_tokens=6)
    torch.manual_seed(3)
    theirs = dk.decode(model, [[1], [2]], dk.UniqueSample(3), max_new_tokens=6)
    assert ours.hypotheses() == theirs.hypotheses() != again.hypotheses()


def test_it_keeps_the_laws_of_decoders() -> None:
    for stop in ((), dk.EndIds(4) | dk.RepetitionLoop(2) | dk.Confidence(0.05)):
        check_decoder(
            lambda numbers: dk.UniqueSample(3, seeds=[31 * number for number in numbers]),
            stop=stop,
            max_examples=5,
        )
        check_decoder(
            lambda numbers: dk.UniqueSample(3, parallel=2, seeds=[31 * number for number in numbers]),
            stop=stop,
            max_examples=3,
        )
    check_decoder(
        lambda numbers: dk.UniqueSample(2, generator=torch.Generator().manual_seed(len(numbers))),
        batch_gives_alone=False,
        max_examples=3,
    )


def test_more_draws_per_round_take_fewer_passes() -> None:
    passes = []
    for parallel in (1, 16):
        steps: list[int] = []
        sample = dk.UniqueSample(16, parallel=parallel, seeds=[1])
        dk.decode(HashModel(50, 3, scale=1.0), [[1]], sample, max_new_tokens=6, on_step=steps.append)
        passes.append(len(steps))
    # Samples differ within a few tokens. All in one round, they need one pass per token.
    assert passes[0] > 48
    assert passes[1] == 6


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2"])
def test_numbers_must_be_integers_of_at_least_one(number: int) -> None:
    with pytest.raises(ValueError, match="UniqueSample: num_samples must be"):
        dk.UniqueSample(number)
    with pytest.raises(ValueError, match="UniqueSample: parallel must be"):
        dk.UniqueSample(parallel=number)


def test_only_one_source_of_randomness_is_accepted() -> None:
    with pytest.raises(ValueError, match="UniqueSample: randomness must come from one source"):
        dk.UniqueSample(generator=torch.Generator(), seeds=[1])
    with pytest.raises(ValueError, match="UniqueSample: generator must be"):
        dk.UniqueSample(generator=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("seeds", [[2**63], [1.5], ["a"], 0, 1.5, ""])
def test_seeds_must_be_64_bit_integers(seeds: list[int]) -> None:
    with pytest.raises(ValueError, match="UniqueSample: seeds must be"):
        dk.UniqueSample(seeds=seeds)


def test_there_must_be_a_seed_a_prompt() -> None:
    with pytest.raises(dk.DecodekitError, match=r"UniqueSample: .* got 1 seeds for 2 prompts"):
        dk.decode(HashModel(9), [[1], [2]], dk.UniqueSample(3, seeds=[1]), max_new_tokens=2)
