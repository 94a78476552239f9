"""Speculative decoding: lossless, for any draft, chain of processors, criteria and batch."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import decodekit as dk
from decodekit.decoders.speculative import speculative
from decodekit.decoders.speculative.draws import Draws, Purpose
from decodekit.testing import HashModel, MarkovModel, check_decoder
from decodekit.testing.strategies import prompts
from tests.decoders.scripted_draft import Scripted
from tests.equivalence.families import build, wrap

VOCAB, END = 7, 2
PROMPTS = [[1], [3, 4, 5, 3, 4], [6, 6]]
# The 99.99 % quantiles of the chi-square distribution.
CHI_SQUARE_26 = 63.16


def model(seed: int = 0, scale: float = 2.0) -> HashModel:
    return HashModel(VOCAB, seed, scale, end_ids=(END,))


DRAFTS = {
    "itself": dk.DraftModel(model()),
    "another": dk.DraftModel(model(5)),
    "lookup": dk.PromptLookup(2),
}


def same(expected: dk.Decoded, actual: dk.Decoded) -> None:
    assert torch.equal(expected.tokens, actual.tokens)
    assert torch.equal(expected.lengths, actual.lengths)
    assert torch.equal(expected.token_log_probs, actual.token_log_probs)
    assert torch.equal(expected.score, actual.score)
    assert expected.finish_reason == actual.finish_reason
    assert expected.texts == actual.texts


def test_a_right_proposal_is_accepted_a_wrong_one_replaced_and_the_rest_discarded() -> None:
    # After 0 comes 1, after 1 comes 2, after 2 comes 0.
    cycle = MarkovModel([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]])
    draft = Scripted([[1, 2, 2, 0]], [[2]])
    out = dk.decode(cycle, [[0]], dk.Speculative(draft, tokens=4), max_new_tokens=5)
    assert out.hypotheses() == [[[1, 2, 0, 1, 2]]]
    report = out.report
    assert isinstance(report, dk.Acceptance)
    # 1 and 2 are accepted, and the model adds 0; then 2 is replaced by 1; the last pass gives 2.
    assert report.drafted.tolist() == [[5]]
    assert report.accepted.tolist() == [[2]]
    assert report.verified_at.tolist() == [2, 1, 1, 0]
    assert report.accepted_at.tolist() == [1, 1, 0, 0]
    assert report.passes.tolist() == [[3]]


def test_a_draft_equal_to_the_model_is_always_accepted_and_takes_the_fewest_passes() -> None:
    endless = HashModel(VOCAB)
    for tokens, new in itertools.product((1, 2, 5), (2, 3, 6, 7, 12)):
        decoder = dk.Speculative(dk.DraftModel(endless), tokens=tokens)
        report = dk.decode(endless, PROMPTS, decoder, max_new_tokens=new).report
        assert isinstance(report, dk.Acceptance)
        assert report.passes.tolist() == [[math.ceil(new / (tokens + 1))]] * 3
        assert torch.equal(report.accepted, report.drafted)
        assert report.rate.tolist() == [[1.0]] * 3


@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
@settings(max_examples=20, deadline=None)
@given(batch=prompts(VOCAB), seed=st.integers(0, 2**31), tokens=st.integers(1, 6), new=st.integers(1, 9))
def test_greedy_results_equal_those_of_greedy_search(
    draft: dk.Draft, batch: list[list[int]], seed: int, tokens: int, new: int
) -> None:
    expected = dk.decode(model(seed), batch, dk.Greedy(), max_new_tokens=new)
    actual = dk.decode(model(seed), batch, dk.Speculative(draft, tokens=tokens), max_new_tokens=new)
    same(expected, actual)


TRIES = [[[1, 3, 4, 5]], [[3, 4, 5, 3], [3, 5, 6], [4, 4]], [[6, 5, 4, 4, 4, 4, 4, 3], [6, 4]]]
CHAINS: dict[str, list[dk.LogitsProcessor]] = {
    "penalties": [dk.RepetitionPenalty([1.3, 2.0, 0.7]), dk.FrequencyPenalty(0.5), dk.NoRepeatNGram(2)],
    "lengths": [dk.MinNewTokens([3, 0, 6], end_ids=END), dk.ExponentialLengthDecay(3, 1.4, end_ids=END)],
    "mirostat": [dk.MirostatV2([2.0, 3.0, 1.0], 0.3)],
    "xtc": [dk.XTC([0.1, 0.2, 0.05], 0.5, seeds=[1, 2, 3])],
    "dry": [dk.DRY(1.5)],
    "watermark": [dk.SynthID([3, 5, 7], 3)],
    "trie": [dk.TrieConstraint(TRIES, end_ids=END, per_prompt=True)],
    "function": [dk.PrefixConstraint(lambda prompt, ids: [prompt + 1, 2, 3] if len(ids) % 2 else [4, 5, 6])],
    "guidance": [
        dk.ClassifierFreeGuidance(model(7), [1.5, 2.0, 0.5], prompts=[[1, 2], [3], [4, 4, 4]]),
        dk.Ensemble(model(8), weights=[[1.0, 2.0, 3.0], 1.0]),
        dk.ShallowFusion(model(9), 0.4),
        dk.PMI(model(3), 0.5, 0.1),
        dk.NoRepeatNGram(3),
    ],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_processors_with_any_memory_see_every_token_once_in_order(
    chain: list[dk.LogitsProcessor],
) -> None:
    expected = dk.decode(model(), PROMPTS, dk.Greedy(), chain, max_new_tokens=9)
    for draft in [*DRAFTS.values(), Scripted.around([row[0] for row in expected.hypotheses()])]:
        same(expected, dk.decode(model(), PROMPTS, dk.Speculative(draft, tokens=3), chain, max_new_tokens=9))


STOPS: dict[str, Any] = {
    "ids": dk.EndIds((4, 5)),
    "loop": dk.RepetitionLoop(2, longest=1),
    "number": dk.MaxNewTokens(3),
    "confidence": dk.Confidence(0.2) | dk.EndIds(6),
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_criteria_are_checked_after_every_token(stop: dk.StoppingCriterion) -> None:
    expected = dk.decode(model(), PROMPTS, dk.Greedy(), stop=stop, max_new_tokens=9)
    for draft in [*DRAFTS.values(), Scripted.around([row[0] for row in expected.hypotheses()])]:
        same(expected, dk.decode(model(), PROMPTS, dk.Speculative(draft), stop=stop, max_new_tokens=9))


def test_stop_strings_and_end_ids_end_a_hypothesis_inside_an_accepted_proposal() -> None:
    bundled, text = dk.load(), ["Once upon a time there was", "she was as beautiful as the"]
    expected = dk.decode(bundled, text, dk.Greedy(), stop=[" who", "."], max_new_tokens=20)
    decoder = dk.Speculative(dk.DraftModel(bundled), tokens=8)
    actual = dk.decode(bundled, text, decoder, stop=[" who", "."], max_new_tokens=20)
    assert torch.equal(expected.tokens, actual.tokens)
    assert expected.texts == actual.texts
    assert expected.finish_reason == actual.finish_reason
    ends = MarkovModel([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], end_ids=(2,))
    out = dk.decode(ends, [[0]], dk.Speculative(Scripted([[1, 2, 0, 1]])), max_new_tokens=9)
    assert out.hypotheses() == [[[1, 2]]]
    assert out.finish_reason == [["end"]]
    assert isinstance(out.report, dk.Acceptance)
    assert out.report.verified_at.tolist() == [1, 1, 0, 0, 0]


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(batch=prompts(VOCAB), seed=st.integers(0, 2**31))
def test_with_seeds_a_prompts_samples_do_not_depend_on_the_batch(batch: list[list[int]], seed: int) -> None:
    def run(texts: list[list[int]], seeds: list[int], samples: int) -> list[list[list[int]]]:
        decoder = dk.Speculative(
            dk.DraftModel(model(5)), tokens=3, sample=True, num_samples=samples, seeds=seeds
        )
        return dk.decode(model(), texts, decoder, dk.TopP(0.9), max_new_tokens=5).hypotheses()

    seeds = [seed + number for number in range(len(batch))]
    together = run(batch, seeds, 2)
    assert together == run(batch[::-1], seeds[::-1], 2)[::-1]
    for number, text in enumerate(batch):
        assert together[number] == run([text], [seeds[number]], 2)[0]
        assert together[number][:1] == run([text], [seeds[number]], 1)[0]


ENUMERABLE = HashModel(3, 1, scale=1.0)
DRAFT = dk.DraftModel(HashModel(3, 2))
CHAIN = [dk.Temperature(0.8), dk.RepetitionPenalty(1.2)]


def chi_square(draft: dk.Draft, chain: list[dk.LogitsProcessor], **source: Any) -> float:  # noqa: ANN401
    """The chi-square statistic of 3-token samples against the processed model."""
    samples = 500
    decoder = dk.Speculative(draft, tokens=2, sample=True, num_samples=samples, **source)
    tokens = dk.decode(ENUMERABLE, [[0, 1, 0]], decoder, chain, max_new_tokens=3).tokens[0]
    observed = torch.bincount((tokens * torch.tensor([9, 3, 1])).sum(-1), minlength=27)
    expected = samples * torch.tensor([chance(text, chain) for text in itertools.product(range(3), repeat=3)])
    return float(((observed - expected) ** 2 / expected).sum())


def chance(text: tuple[int, ...], chain: list[dk.LogitsProcessor]) -> float:
    """The probability of a hypothesis, token by token."""
    result, sequence = 1.0, [0, 1, 0]
    for token in text:
        _, logits = ENUMERABLE.start(dk.Prompt.from_ids([sequence]), rows_per_prompt=1, capacity=9)
        scores = logits
        for processor in chain:
            scores = processor(torch.tensor([sequence]), scores)
        result *= float(scores.softmax(-1)[0, token])
        sequence = [*sequence, token]
    return result


SOURCES: list[dict[str, Any]] = [{"seeds": [3]}, {"generator": torch.Generator().manual_seed(4)}]


@pytest.mark.mostly_slow(4)
@pytest.mark.parametrize("source", SOURCES, ids=["seeds", "generator"])
@pytest.mark.parametrize("draft", [DRAFT, dk.PromptLookup(1)], ids=["model", "lookup"])
def test_samples_follow_the_distribution_of_the_processed_model(
    draft: dk.Draft, source: dict[str, Any]
) -> None:
    assert chi_square(draft, CHAIN, **source) < CHI_SQUARE_26


@pytest.mark.slow
def test_accepting_every_proposal_fails_the_same_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Draws, "uniform", lambda *_: torch.zeros(1, dtype=torch.float64)
    )  # accepts everything
    assert chi_square(DRAFT, CHAIN, seeds=[3]) > CHI_SQUARE_26
    assert chi_square(dk.PromptLookup(1), CHAIN, seeds=[3]) > CHI_SQUARE_26


@pytest.mark.slow
def test_drawing_from_p_after_a_refusal_fails_the_same_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculative, "residual_probs", lambda probs, *_: probs)
    assert chi_square(DRAFT, CHAIN, seeds=[3]) > CHI_SQUARE_26
    assert chi_square(dk.PromptLookup(1), CHAIN, seeds=[3]) > CHI_SQUARE_26


def test_a_draft_equal_to_the_model_is_accepted_when_sampling_too() -> None:
    decoder = dk.Speculative(dk.DraftModel(model()), sample=True, seeds=[1, 2, 3])
    out = dk.decode(model(), PROMPTS, decoder, CHAIN, max_new_tokens=6)
    assert isinstance(out.report, dk.Acceptance)
    # Tokens are dropped only after an end id.
    assert torch.equal(out.report.verified_at, out.report.accepted_at)


def test_the_residual_is_the_positive_part_of_p_minus_q() -> None:
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.6, 0.2]])
    torch.testing.assert_close(speculative.residual_probs(p, 1, q), torch.tensor([[0.3, 0.0, 0.0]]).double())
    assert torch.equal(speculative.residual_probs(p, 0, None), torch.tensor([[0.0, 0.3, 0.2]]))
    assert torch.equal(speculative.residual_probs(q, 0, q), q)


def test_random_numbers_differ_between_purposes_and_steps() -> None:
    draws = Draws(None, torch.tensor([5]), [0])
    like = torch.zeros(1)
    drawn = {float(draws.uniform(like, 0, step, purpose)) for step in range(9) for purpose in Purpose}
    assert len(drawn) == 27


@pytest.mark.slow
def test_it_keeps_the_laws_of_decoders() -> None:
    check_decoder(dk.Speculative(dk.DraftModel(model(5)), tokens=3))
    check_decoder(dk.Speculative(dk.PromptLookup()), stop=dk.EndIds(4) | dk.RepetitionLoop(2))
    check_decoder(
        lambda numbers: dk.Speculative(
            dk.DraftModel(model(5)), sample=True, num_samples=2, seeds=[31 * number for number in numbers]
        ),
        max_examples=8,
    )
    check_decoder(
        lambda numbers: dk.Speculative(
            dk.PromptLookup(), sample=True, generator=torch.Generator().manual_seed(len(numbers))
        ),
        batch_gives_alone=False,
        max_examples=8,
    )


def test_errors_name_the_prompt_with_all_tokens_banned_or_with_nan_scores() -> None:
    nothing = dk.PrefixConstraint(lambda prompt, ids: [0, 1] if prompt == 0 or len(ids) < 7 else [0])
    ban = dk.SuppressTokens([0])
    with pytest.raises(dk.DecodingError, match="every token is banned for prompt 1"):
        dk.decode(model(), PROMPTS[:2], dk.Speculative(DRAFTS["itself"]), [nothing, ban], max_new_tokens=9)

    class Broken(dk.StatelessProcessor):
        def process(self, history: dk.History, scores: Tensor) -> Tensor:
            return torch.where(
                history.to_rows(torch.tensor([False, True, False]))[:, None], torch.nan, scores
            )

    with pytest.raises(dk.DecodingError, match="for prompt 1 some were NaN"):
        dk.decode(model(), PROMPTS, dk.Speculative(dk.PromptLookup()), Broken(), max_new_tokens=9)


def test_processors_must_return_scores_of_the_shape_they_were_given() -> None:
    class Short(dk.StatelessProcessor):
        def process(self, history: dk.History, scores: Tensor) -> Tensor:  # noqa: ARG002
            return scores[:, :2]

    with pytest.raises(dk.DecodekitError, match="processors must return scores of the shape"):
        dk.decode(model(), [[1]], dk.Speculative(dk.PromptLookup()), Short(), max_new_tokens=9)


@pytest.mark.parametrize("rows", [[[1, 1, 1]], [[1], [1]]])
def test_a_draft_must_not_propose_more_than_it_was_asked_for(rows: list[list[int]]) -> None:
    decoder = dk.Speculative(Scripted(rows, obedient=False), tokens=2)
    with pytest.raises(dk.DecodekitError, match=r"Speculative: Scripted must propose at most \[2\] tokens"):
        dk.decode(model(), [[1]], decoder, max_new_tokens=9)


def test_proposed_ids_outside_the_vocabulary_are_dropped() -> None:
    out = dk.decode(model(), [[1]], dk.Speculative(Scripted([[-1, 3]], [[99]])), max_new_tokens=3)
    same(dk.decode(model(), [[1]], dk.Greedy(), max_new_tokens=3), out)
    assert isinstance(out.report, dk.Acceptance)
    assert out.report.drafted.tolist() == [[0]]


def test_the_distributions_of_a_proposal_must_have_the_right_shape() -> None:
    draft = Scripted([[1, 3]], probs=torch.ones(1, 1, VOCAB))
    with pytest.raises(dk.DecodekitError, match=r"must give the distributions of its tokens, \(1, 2, 7\)"):
        dk.decode(model(), [[1]], dk.Speculative(draft, sample=True), max_new_tokens=9)


def test_the_draft_must_have_the_models_vocabulary_and_finite_logits() -> None:
    with pytest.raises(
        dk.DecodekitError, match=r"the draft must have the model's vocabulary, got .* \(1, 9\)"
    ):
        dk.decode(model(), [[1]], dk.Speculative(dk.DraftModel(HashModel(9))), max_new_tokens=9)
    nonfinite = dk.DraftModel(HashModel(VOCAB, scale=math.nan))
    with pytest.raises(dk.DecodingError, match="the draft's logits must be numbers"):
        dk.decode(model(), [[1]], dk.Speculative(nonfinite), max_new_tokens=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens must be an integer of at least 1, got 0"),
        ({"tokens": 1.5}, "tokens must be an integer"),
        ({"num_samples": 0, "sample": True}, "num_samples must be an integer of at least 1"),
        ({"sample": 1}, "sample must be True or False, got 1"),
        ({"num_samples": 2}, "have no effect in greedy decoding"),
        ({"seeds": [1]}, "have no effect in greedy decoding"),
        ({"generator": torch.Generator()}, "have no effect in greedy decoding"),
        ({"sample": True, "seeds": [1], "generator": torch.Generator()}, "from one source"),
        ({"sample": True, "seeds": ["a"]}, "seeds must be 64-bit integers"),
        ({"sample": True, "seeds": [2**63]}, "seeds must be 64-bit integers"),
        ({"sample": True, "seeds": "12"}, "seeds must be one integer per prompt"),
        ({"sample": True, "generator": 5}, "generator must be a torch.Generator"),
    ],
)
def test_every_option_is_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"Speculative: .*{message}"):
        dk.Speculative(dk.PromptLookup(), **options)


def test_the_draft_must_be_a_draft_and_there_must_be_a_seed_per_prompt() -> None:
    with pytest.raises(TypeError, match="Speculative: draft must be a Draft"):
        dk.Speculative(model())  # type: ignore[arg-type]
    with pytest.raises(dk.DecodekitError, match="got 1 seeds for 3 prompts"):
        dk.decode(
            model(), PROMPTS, dk.Speculative(dk.PromptLookup(), sample=True, seeds=[1]), max_new_tokens=2
        )


def test_it_cannot_be_streamed() -> None:
    with pytest.raises(TypeError, match="runs its own loop"):
        list(dk.stream(model(), [[1]], dk.Speculative(dk.PromptLookup()), max_new_tokens=2))  # type: ignore[arg-type]


def test_random_processors_draw_independently_for_the_samples_of_a_prompt() -> None:
    whole = dk.Prompt.from_ids([[1], [2]]).history(3, 2)
    xtc = dk.XTC(0.1, 0.5, seeds=3)
    streams = [xtc.init(whole.part(torch.tensor([row]))).streams for row in range(4)]
    assert torch.equal(xtc.init(whole).streams, torch.cat(streams))


def test_every_row_has_the_source_of_its_own_prompt() -> None:
    """Processors compare with the source, and second models read it."""
    t5, sources = wrap("t5"), [[9, 10, 11], [20, 21, 22, 23, 24], [30]]
    second = dk.HFModel(build("t5", 1))
    chain = [dk.EncoderRepetitionPenalty(1.5), dk.EncoderNoRepeatNGram(1), dk.Ensemble(second)]
    expected = dk.decode(t5, sources, dk.Greedy(), chain, max_new_tokens=10)
    out = dk.decode(t5, sources, dk.Speculative(dk.DraftModel(t5)), chain, max_new_tokens=10)
    assert torch.equal(expected.tokens, out.tokens)
