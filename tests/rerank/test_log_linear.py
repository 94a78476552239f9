"""Noisy-channel reranking and maximum mutual information: by hand, by brute force, and refusals."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing.strategies import prompts
from tests.rerank.models import translator
from tests.rerank.texts import decoded

WEIGHTS = st.floats(-2, 2, width=32)


def test_the_true_posterior_by_hand() -> None:
    # P(y) = (0.3, 0.7) and P(x=0|y) = (0.9, 0.2), whose products are 0.27 and 0.14; P(y|x) does not decide.
    forward, reverse, alone = (
        dk.testing.MarkovModel(rows)
        for rows in ([[0.5, 0.5]] * 2, [[0.9, 0.1], [0.2, 0.8]], [[0.3, 0.7]] * 2)
    )
    out = dk.decode(forward, [[0]], dk.BeamSearch(2, num_return=2), max_new_tokens=1)
    best = dk.noisy_channel(out, reverse, prior=dk.Prior(alone, [[0]]))
    assert best.hypotheses() == [[[0], [1]]]
    assert isinstance(best.report, dk.ModelReport)
    assert best.score[0].exp().tolist() == pytest.approx([0.5 * 0.9 * 0.3, 0.5 * 0.2 * 0.7])
    assert best.report.channel[0].exp().tolist() == pytest.approx([0.9, 0.2])
    assert best.report.prior[0].exp().tolist() == pytest.approx([0.3, 0.7])


@settings(max_examples=10, deadline=None)
@given(
    batch=prompts(vocab=4),
    seed=st.integers(0, 2**31),
    weights=st.tuples(WEIGHTS, st.one_of(st.none(), WEIGHTS), WEIGHTS),
)
def test_the_score_is_the_sum_by_brute_force(
    batch: list[list[int]], seed: int, weights: tuple[float, float | None, float]
) -> None:
    channel_weight, prior_weight, reward = weights
    forward, reverse, alone = (dk.testing.HashModel(4, seed + number, end_ids=(3,)) for number in range(3))
    out = dk.decode(forward, batch, dk.BeamSearch(3, num_return=3), max_new_tokens=3)
    best = dk.noisy_channel(
        out,
        reverse,
        channel_weight=channel_weight,
        prior=dk.Prior(alone, [[1]]),
        prior_weight=prior_weight,
        length_reward=reward,
    )
    log_probs_of = [dk.testing.next_log_probs(model) for model in (forward, reverse, alone)]

    def emit(number: int, begin: list[int], tokens: list[int]) -> float:
        return sum(log_probs_of[number](begin + tokens[:step])[token] for step, token in enumerate(tokens))

    for prompt, row, scores in zip(batch, best.hypotheses(), best.score.tolist(), strict=True):
        expected = [
            emit(0, prompt, tokens)
            + channel_weight * emit(1, (tokens[:-1] or tokens) if tokens[-1] == 3 else tokens, prompt)
            + (channel_weight if prior_weight is None else prior_weight) * emit(2, [1], tokens)
            + reward * len(tokens)
            for tokens in row
        ]
        # Sums of Python's double precision against single.
        assert scores[: len(row)] == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert scores == sorted(scores, reverse=True)


def test_a_batch_gives_what_each_prompt_alone_gives() -> None:
    forward, reverse = dk.testing.HashModel(5), dk.testing.HashModel(5, 1)
    batch = [[0, 1], [2], [3, 3, 1]]
    out = dk.decode(forward, batch, dk.Sample(6, seeds=[1, 2, 3]), max_new_tokens=3)
    together = dk.noisy_channel(out, reverse, prior=dk.Prior(forward, [[4]]), prior_weight=0.3)
    for number, prompt in enumerate(batch):
        own = dk.decode(forward, [prompt], dk.Sample(6, seeds=[number + 1]), max_new_tokens=3)
        alone = dk.noisy_channel(own, reverse, prior=dk.Prior(forward, [[4]]), prior_weight=0.3)
        assert alone.hypotheses()[0] == together.hypotheses()[number]
        assert alone.score[0].tolist() == together.score[number].tolist()


def test_weights_of_zero_leave_the_models_own_order() -> None:
    impossible = dk.testing.MarkovModel([[1.0, 0.0], [1.0, 0.0]])  # log-probabilities of minus infinity
    out = dk.decode(
        dk.testing.MarkovModel([[0.4, 0.6]] * 2), [[1]], dk.BeamSearch(2, num_return=2), max_new_tokens=1
    )
    best = dk.noisy_channel(out, impossible, channel_weight=0, prior=dk.Prior(impossible, [[0]]))
    assert out.hypotheses() == best.hypotheses()
    torch.testing.assert_close(out.log_prob, best.score)
    assert best.report.channel.tolist() == [[-math.inf, -math.inf]]


def test_a_length_reward_prefers_the_longer() -> None:
    model = dk.testing.MarkovModel([[0.3, 0.7]] * 2, end_ids=(1,))
    out = dk.decode(model, [[0]], dk.BeamSearch(3, num_return=3, scorer=dk.LogProb()), max_new_tokens=3)
    assert [len(ids) for ids in out.hypotheses()[0]] == [1, 2, 3]
    best = dk.noisy_channel(out, model, channel_weight=0, length_reward=5.0)
    assert [len(ids) for ids in best.hypotheses()[0]] == [3, 2, 1]


def test_an_encoder_decoder_goes_both_ways() -> None:
    model = translator()
    sources = [[8, 9, 10], [11]]
    out = dk.decode(model, sources, dk.BeamSearch(4, num_return=4), max_new_tokens=4)
    best = dk.noisy_channel(out, model, channel_weight=0.7)
    for row, (hypotheses, source) in enumerate(zip(best.hypotheses(), sources, strict=True)):
        back = dk.score(model, hypotheses, [source] * 4).log_prob[:, 0]
        # Sums of batches of other shapes.
        torch.testing.assert_close(best.log_prob[row] + 0.7 * back, best.score[row], atol=1e-3, rtol=0)
    texts = dk.noisy_channel(out, dk.Channel(model, ["w8 w9 w10", "w11"]))
    assert sorted(texts.texts[0]) == sorted(out.texts[0])
    assert bool((texts.score.diff() <= 0).all())


def test_hypotheses_that_are_not_valid_stay_last() -> None:
    out = decoded([["a", "b"], ["c"]])
    best = dk.noisy_channel(out, dk.Channel(dk.testing.HashModel(5), [[1], [2]]))
    assert best.valid.tolist() == [[True, True], [True, False]]
    assert best.score[1, 1].item() == best.report.channel[1, 1].item() == -math.inf


def test_infinities_of_both_signs_are_refused() -> None:
    never = dk.testing.MarkovModel([[1.0, 0.0], [1.0, 0.0]])
    out = decoded([["a"]], [[-math.inf]], [[[1]]])
    with pytest.raises(dk.DecodekitError, match="noisy_channel: the terms of a hypothesis have no sum"):
        dk.noisy_channel(out, dk.Channel(never, [[1]]), channel_weight=-1.0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"channel_weight": math.inf}, ValueError, "channel_weight must be a finite number, got inf"),
        ({"channel_weight": "1"}, ValueError, "channel_weight must be a finite number"),
        ({"length_reward": math.nan}, ValueError, "length_reward must be a finite number"),
        (
            {"prior_weight": 0.5},
            ValueError,
            "prior_weight needs a prior, got 0.5",
        ),
        (
            {"prior": dk.Prior(dk.testing.HashModel(5)), "prior_weight": None, "channel_weight": None},
            ValueError,
            "cha",
        ),
        (
            {"prior": dk.Prior(dk.testing.HashModel(5)), "prior_weight": math.inf},
            ValueError,
            "prior_weight must be",
        ),
        ({"prior": dk.testing.HashModel(5)}, TypeError, r"prior must be a Prior, .* Use dk.Prior\(model\)"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    channel = dk.Channel(dk.testing.HashModel(5), [[1]])
    with pytest.raises(error, match=f"noisy_channel: {message}"):
        dk.noisy_channel(decoded([["a"]]), channel, **options)


def test_noisy_channel_refuses_values_that_are_no_result_or_no_model() -> None:
    with pytest.raises(TypeError, match="noisy_channel: out must be what decode returns"):
        dk.noisy_channel(["a"], dk.testing.HashModel(5))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Channel: model must be a Model"):
        dk.noisy_channel(decoded([["a"]]), 0.5)  # type: ignore[arg-type]


def test_hypotheses_likely_without_the_source_rank_lower() -> None:
    # "I don't know" (0) is the likeliest answer to everything.
    model, alone = dk.testing.MarkovModel([[0.6, 0.4]] * 2), dk.testing.MarkovModel([[0.9, 0.1]] * 2)
    out = dk.decode(model, [[0]], dk.BeamSearch(2, num_return=2), max_new_tokens=1)
    best = dk.mmi_antilm(out, dk.Prior(alone, [[0]]), weight=0.5)
    assert (out.hypotheses(), best.hypotheses()) == ([[[0], [1]]], [[[1], [0]]])
    assert best.score[0].exp().tolist() == pytest.approx([0.4 / 0.1**0.5, 0.6 / 0.9**0.5])
    assert best.report.prior[0].exp().tolist() == pytest.approx([0.1, 0.9])
    assert best.report.channel is None


@settings(max_examples=8, deadline=None)
@given(
    batch=prompts(vocab=4),
    seed=st.integers(0, 2**31),
    weight=st.floats(0, 1, width=32),
    first=st.one_of(st.none(), st.integers(1, 4)),
    reward=st.floats(-1, 1, width=32),
)
def test_both_are_sums_by_brute_force(
    batch: list[list[int]], seed: int, weight: float, first: int | None, reward: float
) -> None:
    forward, other = (dk.testing.HashModel(4, seed + number) for number in range(2))
    out = dk.decode(forward, batch, dk.BeamSearch(3, num_return=3), max_new_tokens=3)
    forward_of, prior_of = (dk.testing.next_log_probs(model) for model in (forward, other))

    def emit(model: Any, begin: list[int], tokens: list[int]) -> list[float]:  # noqa: ANN401
        return [model(begin + tokens[:step])[token] for step, token in enumerate(tokens)]

    antilm = dk.mmi_antilm(out, dk.Prior(other, [[1]]), weight=weight, first=first, length_reward=reward)
    bidi = dk.mmi_bidi(out, other, weight=weight, length_reward=reward)
    for number, prompt in enumerate(batch):
        anti = [
            sum(emit(forward_of, prompt, tokens))
            - weight * sum(emit(prior_of, [1], tokens)[:first])
            + reward * len(tokens)
            for tokens in antilm.hypotheses()[number]
        ]
        both = [
            (1 - weight) * sum(emit(forward_of, prompt, tokens))
            + weight * sum(emit(prior_of, tokens, prompt))
            + reward * len(tokens)
            for tokens in bidi.hypotheses()[number]
        ]
        for expected, best in ((anti, antilm), (both, bidi)):
            scores = best.score[number].tolist()
            # Python's double precision against single.
            assert scores == pytest.approx(expected, rel=1e-4, abs=1e-4)
            assert scores == sorted(scores, reverse=True)


def test_only_the_first_tokens_are_penalised() -> None:
    model = dk.testing.MarkovModel([[0.5, 0.5], [0.1, 0.9]])
    out = dk.decode(model, [[0]], dk.BeamSearch(4, num_return=4), max_new_tokens=2)
    one, all_of_them = (
        dk.mmi_antilm(out, dk.Prior(model, [[0]]), weight=1.0, first=first) for first in (1, None)
    )
    # The prior is the model: without the first token's share, the second's remains.
    found = dict(zip(map(tuple, one.hypotheses()[0]), one.score[0].exp().tolist(), strict=True))
    assert found == pytest.approx({(0, 0): 0.5, (0, 1): 0.5, (1, 0): 0.1, (1, 1): 0.9})
    assert all_of_them.score[0].tolist() == pytest.approx([0.0] * 4, abs=1e-6)


def test_the_weight_goes_from_the_model_to_its_reverse() -> None:
    model, reverse = dk.testing.HashModel(4), dk.testing.HashModel(4, 1)
    out = dk.decode(model, [[0, 1]], dk.BeamSearch(5, num_return=5), max_new_tokens=2)
    own, other = (dk.mmi_bidi(out, reverse, weight=weight) for weight in (0, 1))
    torch.testing.assert_close(out.log_prob.sort(descending=True).values, own.score)
    torch.testing.assert_close(other.report.channel, other.score)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (dk.mmi_antilm, {"weight": math.nan}, "mmi_antilm: weight must be a finite number, got nan"),
        (dk.mmi_antilm, {"first": 0}, "mmi_antilm: first must be an integer of at least 1, got 0"),
        (dk.mmi_antilm, {"first": 1.5}, "mmi_antilm: first must be an integer"),
        (dk.mmi_antilm, {"length_reward": None}, "mmi_antilm: length_reward must be a finite number"),
        (dk.mmi_bidi, {"weight": 1.1}, r"mmi_bidi: weight must be in \[0, 1\], got 1.1"),
        (dk.mmi_bidi, {"weight": -0.1}, r"mmi_bidi: weight must be in \[0, 1\]"),
        (dk.mmi_bidi, {"weight": "half"}, r"mmi_bidi: weight must be in \[0, 1\]"),
        (dk.mmi_bidi, {"length_reward": math.inf}, "mmi_bidi: length_reward must be a finite number"),
    ],
)
def test_options_out_of_range_are_refused(function: Any, options: dict[str, Any], message: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=message):
        function(decoded([["a"]]), dk.testing.HashModel(5), **options)


@pytest.mark.parametrize(("function", "name"), [(dk.mmi_antilm, "Prior"), (dk.mmi_bidi, "Channel")])
def test_mmi_refuses_values_that_are_no_result_or_no_model(function: Any, name: str) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=f"{name}: model must be a Model"):
        function(decoded([["a"]]), 0.5)
    with pytest.raises(TypeError, match="out must be what decode returns"):
        function(["a"], dk.testing.HashModel(5))
