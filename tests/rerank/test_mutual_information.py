"""Maximum mutual information (`mmi_antilm`, `mmi_bidi`): by hand, by brute force, and what is refused."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing.strategies import prompts
from tests.rerank.texts import decoded


def test_what_is_likely_anyway_is_put_behind() -> None:
    # "I don't know" (0) is what the model says most, after anything.
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
    ahead, told = (dk.testing.next_log_probs(model) for model in (forward, other))

    def emit(model: Any, begin: list[int], said: list[int]) -> list[float]:  # noqa: ANN401
        return [model(begin + said[:step])[token] for step, token in enumerate(said)]

    antilm = dk.mmi_antilm(out, dk.Prior(other, [[1]]), weight=weight, first=first, length_reward=reward)
    bidi = dk.mmi_bidi(out, other, weight=weight, length_reward=reward)
    for number, prompt in enumerate(batch):
        anti = [
            sum(emit(ahead, prompt, said)) - weight * sum(emit(told, [1], said)[:first]) + reward * len(said)
            for said in antilm.hypotheses()[number]
        ]
        both = [
            (1 - weight) * sum(emit(ahead, prompt, said))
            + weight * sum(emit(told, said, prompt))
            + reward * len(said)
            for said in bidi.hypotheses()[number]
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
    # The prior is the model: without the first token's share, what is left is the second's.
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
        (dk.mmi_antilm, {"first": 0}, "mmi_antilm: first must be an integer of at least 1 or None, got 0"),
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
def test_what_is_no_result_or_no_model_is_refused(function: Any, name: str) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=f"{name}: model must be a Model"):
        function(decoded([["a"]]), 0.5)
    with pytest.raises(TypeError, match="out must be what decode returns"):
        function(["a"], dk.testing.HashModel(5))
