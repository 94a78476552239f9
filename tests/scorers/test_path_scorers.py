"""Path scorers: solved by hand, re-computed from the result, and against enumeration."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import decodekit as dk
from decodekit.testing import HashModelWithOutputs, MarkovModel

# The surprisals of a hypothesis, its attentions [step][column], and the prompt's length -> the score.
Slow = Callable[[list[float], list[list[float]], int], float]


def variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def columns(attention: list[list[float]]) -> list[float]:
    return [sum(step[column] for step in attention) for column in range(len(attention[0]))]


SLOW: dict[str, tuple[dk.PathScorer, Slow]] = {
    "variance": (dk.UIDVariance(2.0), lambda u, a, n: -sum(u) - 2 * variance(u)),  # noqa: ARG005
    "variance of the mean": (
        dk.UIDVariance(0.5, base=dk.LengthPenalty(1.0)),
        lambda u, a, n: -sum(u) / len(u) - 0.5 * variance(u),  # noqa: ARG005
    ),
    "local": (
        dk.UIDLocalVariance(0.7),
        lambda u, a, n: (  # noqa: ARG005
            -sum(u) - 0.7 * sum((b - c) ** 2 for b, c in itertools.pairwise([0.0, *u])) / len(u)
        ),
    ),
    "maximum": (dk.UIDMaximum(1.5), lambda u, a, n: -sum(u) - 1.5 * max(u)),  # noqa: ARG005
    "squared": (dk.UIDSquared(0.3), lambda u, a, n: -sum(u) - 0.3 * sum(x * x for x in u)),  # noqa: ARG005
    "coverage": (
        dk.CoveragePenalty(0.4),
        lambda u, a, n: (  # noqa: ARG005
            -sum(u) / ((5 + len(u)) / 6) ** 0.6 + 0.4 * sum(math.log(min(c, 1.0)) for c in columns(a))
        ),
    ),
    "coverage, stepwise": (
        dk.CoveragePenalty(0.4, base=dk.LogProb(), stepwise=True),
        lambda u, a, n: -sum(u) + 0.4 * sum(math.log(min(c, 1.0)) for c in columns(a)),  # noqa: ARG005
    ),
    "summary": (
        dk.SummaryCoveragePenalty(2.0),
        lambda u, a, n: -sum(u) / len(u) - 2 * sum(max(c, 1.0) - 1 for c in columns(a)),  # noqa: ARG005
    ),
    "bounded reward": (
        dk.BoundedLengthReward(0.9, ratio=1.5),
        lambda u, a, n: -sum(u) + 0.9 * min(len(u), 1.5 * n),  # noqa: ARG005
    ),
    "brevity": (
        dk.BrevityPenalty(2.0, ratio=1.5, base=dk.LogProb()),
        lambda u, a, n: -sum(u) + 2 * min(0.0, 1 - 1.5 * n / len(u)),  # noqa: ARG005
    ),
    "sum": (
        dk.WeightedSum([dk.LogProb(), dk.UIDMaximum(1.0), dk.CoveragePenalty(1.0)], [0.5, 2, 0]),
        lambda u, a, n: -0.5 * sum(u) + 2 * (-sum(u) - max(u)),  # noqa: ARG005
    ),
    "product": (
        dk.Product([dk.LogProb(), dk.LengthPenalty(1.0), dk.LogProb()]),
        lambda u, a, n: -(sum(u) ** 3) / len(u),  # noqa: ARG005
    ),
}


def path(
    model: HashModelWithOutputs, prompt: list[int], tokens: list[int]
) -> tuple[list[float], list[list[float]]]:
    """The surprisals of a text's tokens, and the attention that predicted each."""
    session, logits = model.start_with_outputs(
        dk.Prompt.from_ids([prompt]),
        rows_per_prompt=1,
        capacity=20,
        outputs_spec=dk.ModelOutputsSpec(attention=True),
    )
    surprisals, attentions = [], []
    for token in tokens:
        attention = session.model_outputs.attention
        assert attention is not None
        surprisals.append(-float(logits[0].log_softmax(-1)[token]))
        attentions.append(attention[0].tolist())
        logits = session.advance(torch.tensor([token]), None)
    return surprisals, attentions


@pytest.mark.parametrize("name", SLOW)
def test_scores_equal_the_formula(name: str) -> None:
    scorer, slow = SLOW[name]
    prompts = [[1, 4], [3], [2, 2, 1]]
    for seed in range(4):
        model = HashModelWithOutputs(5, seed, end_ids=(0,))
        search = dk.BeamSearch(3, scorer=scorer, num_return=3)
        out = dk.decode(model, prompts, search, max_new_tokens=5)
        for number, prompt in enumerate(prompts):
            for rank, tokens in enumerate(out.hypotheses()[number]):
                expected = slow(*path(model, prompt, tokens), len(prompt))
                assert out.score[number, rank].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", SLOW)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), vocab=st.integers(2, 3), new=st.integers(1, 3), rule=st.booleans())
def test_enough_beams_find_the_optimum_and_bounds_hold(
    name: str,
    seed: int,
    vocab: int,
    new: int,
    rule: bool,  # noqa: FBT001
) -> None:
    scorer, slow = SLOW[name]
    model, prompt = HashModelWithOutputs(vocab, seed, end_ids=(0,)), [1, 1, 0]
    stop = dk.Proved() if rule else dk.WhenFull()
    search = dk.BeamSearch(vocab**new, scorer=scorer, stop_rule=stop, num_return=1)
    out = dk.decode(model, [prompt], search, max_new_tokens=new)
    texts = {
        tuple(text[: text.index(0) + 1] if 0 in text else text)
        for text in itertools.product(range(vocab), repeat=new)
    }
    best = max(slow(*path(model, prompt, list(text)), len(prompt)) for text in texts)
    if rule:
        assert out.score.item() == pytest.approx(best, rel=1e-4, abs=1e-4)
    assert isinstance(out.report, dk.Certificate)
    assert best <= max(out.score.item(), out.report.bound.item()) + 1e-4


def test_uniform_information_density_prefers_even_surprisal() -> None:
    # [1, 1]: 0.5 * 0.5; [2, 2]: 0.3 * 0.9 = 0.27 is likelier, but uneven.
    model = MarkovModel([[0.2, 0.5, 0.3], [0.3, 0.5, 0.2], [0.05, 0.05, 0.9]])
    for scorer, expected in (
        (dk.LogProb(), [2, 2]),
        (dk.UIDVariance(1.0), [1, 1]),
        (dk.UIDLocalVariance(1.0), [1, 1]),
        (dk.UIDMaximum(1.0), [1, 1]),
        (dk.UIDSquared(1.0), [1, 1]),
        (dk.UIDVariance(0.0), [2, 2]),
    ):
        out = dk.decode(
            model, [[0]], dk.BeamSearch(9, scorer=scorer, stop_rule=dk.Proved()), max_new_tokens=2
        )
        assert out.hypotheses() == [[expected]]


def test_the_expected_length_is_the_prompts_own() -> None:
    # Every token is as likely as ending: only the reward counts, up to half a token for each of the prompt.
    model = MarkovModel([[0.5, 0.5], [0.5, 0.5]], end_ids=(1,))
    prompts = [[0, 0, 0, 0], [0, 0]]
    for scorer in (
        dk.BoundedLengthReward(1.0, ratio=1.0),
        dk.BoundedLengthReward(1.0, length=[4.0, 2.0]),
        dk.BrevityPenalty(9.0, ratio=1.0, base=dk.LogProb()),
        dk.BrevityPenalty(9.0, length=torch.tensor([4.0, 2.0]), base=dk.LogProb()),  # type: ignore[arg-type]
    ):
        search = dk.BeamSearch(4, scorer=scorer, stop_rule=dk.Proved())
        out = dk.decode(model, prompts, search, max_new_tokens=6)
        assert out.lengths.tolist() == [[4], [2]]
        assert out.report.proved.all()  # type: ignore[attr-defined]
    search = dk.BeamSearch(4, scorer=dk.BrevityPenalty(length=[4.0, 2.0]))
    with pytest.raises(dk.DecodekitError, match="one length per prompt, got 2 for 1 prompts"):
        dk.decode(model, [[0]], search, max_new_tokens=6)


def test_lengths_per_prompt_are_the_runs_own_when_it_decodes_in_several_batches() -> None:
    model = MarkovModel([[0.5, 0.5], [0.5, 0.5]], end_ids=(1,))
    search = dk.BeamSearch(4, scorer=dk.BoundedLengthReward(1.0, length=[4.0, 2.0]), stop_rule=dk.Proved())
    out = dk.decode(model, [[0], [0]], search, max_new_tokens=6, batch_tokens=28)
    assert out.lengths.tolist() == [[4], [2]]


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(dk.DecodekitError, match="BeamSearch needs a model that"):
        dk.decode(
            MarkovModel([[1.0]]), [[0]], dk.BeamSearch(1, scorer=dk.CoveragePenalty(0.2)), max_new_tokens=1
        )


@pytest.mark.parametrize(
    "kind",
    [
        dk.UIDVariance,
        dk.UIDLocalVariance,
        dk.UIDMaximum,
        dk.UIDSquared,
        dk.CoveragePenalty,
        dk.SummaryCoveragePenalty,
    ],
)
@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan, "1", None])
def test_weights_must_be_finite_and_not_negative(kind: Callable[..., object], weight: object) -> None:
    with pytest.raises(ValueError, match="weight must be a finite number of at least 0, got"):
        kind(weight)
    with pytest.raises(TypeError, match=r"base must be a Scorer or PathScorer such as .*, got 3"):
        kind(1.0, base=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either ratio or length must be given, got None and None"),
        ({"ratio": 1.0, "length": 3}, "either ratio or length"),
        ({"ratio": 0.0}, r"ratio must be above 0 and finite, got \(0.0,\)"),
        ({"length": -1}, "length must be above 0 and finite"),
        ({"length": []}, "length must be above 0 and finite"),
        ({"length": [1.0, math.nan]}, "length must be above 0 and finite"),
        ({"length": "3"}, "length must be above 0 and finite"),
    ],
)
def test_the_expected_length_must_be_one_positive_number(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dk.BoundedLengthReward(1.0, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        dk.BrevityPenalty(**arguments)  # type: ignore[arg-type]


def test_combinations_refuse_values_that_are_not_scorers() -> None:
    for kind in (dk.WeightedSum, dk.Product):
        for scorers in ([], [1.0], dk.LogProb(), "no"):
            with pytest.raises(ValueError, match="scorers must be one or more Scorers or PathScorers"):
                kind(scorers)  # type: ignore[arg-type, operator]
    for weights in ([1.0], [1.0, math.inf], [1.0, "2"]):
        with pytest.raises(ValueError, match="one finite number for each of the 2 scorers"):
            dk.WeightedSum([dk.LogProb(), dk.LogProb()], weights)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stepwise must be True or False"):
        dk.CoveragePenalty(1.0, stepwise=1)  # type: ignore[arg-type]
