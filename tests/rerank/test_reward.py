"""Best of n (`best_of_n`): every form of reward, ties, and refusals."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import decodekit as dk
from tests.rerank.texts import decoded

OUT = decoded([["aa", "a", "aaa"], ["aaaa", "b"]])
BEST = [["aaa", "aa", "a"], ["aaaa", "b"]]


def test_the_largest_reward_is_first() -> None:
    best = dk.best_of_n(OUT, lambda text: text.count("a"))
    assert best.texts == BEST
    assert best.score.tolist() == [[3.0, 2.0, 1.0], [4.0, 0.0, -math.inf]]
    assert best.valid.tolist() == OUT.valid.tolist()


@pytest.mark.parametrize(
    "form", [list, tuple, np.array, torch.tensor], ids=["list", "tuple", "array", "tensor"]
)
def test_all_rewards_may_come_from_one_call(form: Any) -> None:  # noqa: ANN401
    calls: list[list[str]] = []

    def reward(texts: list[str]) -> Any:  # noqa: ANN401
        calls.append(texts)
        return form([text.count("a") for text in texts])

    best = dk.best_of_n(OUT, reward, batched=True)
    assert calls == [["aa", "a", "aaa", "aaaa", "b"]]
    assert (best.texts, best.score[0].tolist()) == (BEST, [3.0, 2.0, 1.0])


def test_rewards_may_be_a_tensor() -> None:
    best = dk.best_of_n(OUT, torch.tensor([[2.0, 1.0, 3.0], [4.0, 0.0, math.nan]]))
    assert (best.texts, best.score[1].tolist()) == (BEST, [4.0, 0.0, -math.inf])


def test_a_tie_goes_to_the_likelier() -> None:
    out = decoded([["a", "b", "c"]], [[-3.0, -1.0, -2.0]])
    assert dk.best_of_n(out, lambda _: 0).texts == [["b", "c", "a"]]


def test_the_log_probability_as_the_reward_ranks_by_it() -> None:
    model = dk.testing.HashModel(5)
    out = dk.decode(model, [[0], [1]], dk.Sample(6, seeds=[0, 1]), max_new_tokens=3)
    best = dk.best_of_n(out, out.log_prob)
    assert out.log_prob.sort(descending=True).values.tolist() == best.log_prob.tolist() == best.score.tolist()


def test_rewards_of_ids() -> None:
    out = dk.decode(dk.testing.HashModel(5), [[0], [1]], dk.Sample(6, seeds=[0, 1]), max_new_tokens=3)
    for row in dk.best_of_n(out, sum).hypotheses():
        assert [sum(ids) for ids in row] == sorted((sum(ids) for ids in row), reverse=True)
    assert dk.best_of_n(OUT, lambda ids: -ids[0], ids=True).score[0].tolist() == [0.0, -1.0, -2.0]
    with pytest.raises(dk.DecodekitError, match="best_of_n: texts need a tokenizer"):
        dk.best_of_n(out, len, ids=False)


def test_a_prompt_without_hypotheses_is_not_passed_to_the_reward() -> None:
    assert dk.best_of_n(decoded([[], ["a"]]), len).texts == [[], ["a"]]
    assert dk.best_of_n(decoded([["a"], []]), lambda texts: [1.0] * len(texts), batched=True).texts == [
        ["a"],
        [],
    ]


@pytest.mark.parametrize("value", [None, "good", math.nan, [1.0]])
def test_rewards_that_are_not_numbers_are_refused(value: Any) -> None:  # noqa: ANN401
    with pytest.raises(dk.DecodekitError, match="best_of_n: a reward must be a number"):
        dk.best_of_n(OUT, lambda _: value)


@pytest.mark.parametrize("given", [[1.0], 5.0, None, torch.zeros(6)])
def test_one_call_must_return_one_reward_per_hypothesis(given: Any) -> None:  # noqa: ANN401
    with pytest.raises(dk.DecodekitError, match="there must be one reward per hypothesis, 5 together"):
        dk.best_of_n(OUT, lambda _: given, batched=True)


@pytest.mark.parametrize(
    ("reward", "options", "error", "message"),
    [
        ("long", {}, TypeError, "reward must be callable or a tensor, got 'long'"),
        (
            torch.zeros(2, 2),
            {},
            dk.DecodekitError,
            r"rewards must be \[batch, hyps\], \(2, 3\), got \(2, 2\)",
        ),
        (torch.zeros(2, 3), {"batched": True}, ValueError, "batched and ids have no effect"),
        (torch.zeros(2, 3), {"ids": True}, ValueError, "batched and ids have no effect"),
    ],
)
def test_wrong_arguments_are_refused(
    reward: Any,  # noqa: ANN401
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=f"best_of_n: {message}"):
        dk.best_of_n(OUT, reward, **options)
    with pytest.raises(TypeError, match="best_of_n: out must be what decode returns"):
        dk.best_of_n(None, len)  # type: ignore[arg-type]
