import math
from typing import Any

import pytest

import decodekit as dk
from decodekit.testing import HashModel, MarkovModel, check_processor
from tests.processors.second import SPARSE, after, always


def test_probabilities_are_averaged() -> None:
    out = after(dk.Ensemble(always(0.2, 0.8)), [0.6, 0.4])
    assert out.exp()[0].tolist() == pytest.approx([0.4, 0.6])
    out = after(dk.Ensemble([always(0.2, 0.8), always(1.0, 0.0)], weights=[2, 1, 1]), [0.6, 0.4])
    assert out.exp()[0].tolist() == pytest.approx([0.6, 0.4])


def test_log_probabilities_are_averaged() -> None:
    out = after(dk.Ensemble(always(0.2, 0.8), [1, 3], average="log_prob"), [0.6, 0.4])
    assert out.exp()[0].tolist() == pytest.approx([0.6**0.25 * 0.2**0.75, 0.4**0.25 * 0.8**0.75])


def test_a_token_impossible_for_one_model_is_halved_or_banned() -> None:
    second = always(0.0, 1.0)
    assert after(dk.Ensemble(second), [0.5, 0.5]).exp()[0].tolist() == pytest.approx([0.25, 0.75])
    assert after(dk.Ensemble(second, average="log_prob"), [0.5, 0.5])[0, 0] == -math.inf
    for average in ("prob", "log_prob"):
        out = after(dk.Ensemble(second, [1, 0], average), [0.5, 0.5])  # type: ignore[arg-type]
        assert out.exp()[0].tolist() == pytest.approx([0.5, 0.5])
        out = after(dk.Ensemble(second, [0, 1], average), [0.5, 0.5])  # type: ignore[arg-type]
        assert out.exp()[0].tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("average", ["prob", "log_prob"])
def test_what_was_banned_stays_banned(average: Any) -> None:  # noqa: ANN401
    out = after(dk.Ensemble(always(0.5, 0.3, 0.2), average=average), [0.0, 0.5, 0.5])
    assert out[0, 0] == -math.inf
    assert out[0, 1:].isfinite().all()


def test_an_ensemble_of_one_model_twice_is_that_model() -> None:
    model = HashModel(9)
    for average in ("prob", "log_prob"):
        out = dk.decode(
            model, [[1], [2, 3]], dk.BeamSearch(3), dk.Ensemble(model, average=average), max_new_tokens=4
        )  # type: ignore[arg-type]
        assert (
            out.hypotheses()
            == dk.decode(model, [[1], [2, 3]], dk.BeamSearch(3), max_new_tokens=4).hypotheses()
        )


def test_every_model_reads_the_new_tokens() -> None:
    second = MarkovModel([[0.0, 1.0], [1.0, 0.0]])
    out = dk.decode(always(0.6, 0.4), [[0], [0, 1]], dk.Greedy(), dk.Ensemble(second), max_new_tokens=3)
    assert out.hypotheses() == [[[1, 0, 1]], [[0, 1, 0]]]


def test_each_prompt_may_weigh_the_models_its_own_way() -> None:
    out = after(dk.Ensemble(always(0.2, 0.8), [1, [0, 1, 3]]), [0.6, 0.4], [[0], [1], [0]])
    assert out.exp()[:, 0].tolist() == pytest.approx([0.6, 0.4, 0.3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": []}, "there must be at least one other model, got none"),
        ({"average": "mean"}, "average must be 'prob' or 'log_prob', got 'mean'"),
        ({"weights": [1.0]}, "there must be a weight for .* 2 together, got 1"),
        ({"weights": [1, 1, 1]}, "there must be a weight for .* 2 together, got 3"),
        ({"weights": [1, -1]}, "weights must be finite numbers of at least 0, got -1"),
        ({"weights": [1, math.inf]}, "weights must be finite numbers of at least 0, got inf"),
        ({"weights": [1, math.nan]}, "weights must be finite numbers of at least 0, got nan"),
        ({"weights": [True, 1]}, "weights must be finite numbers of at least 0, got True"),
        ({"weights": [0, 0]}, "some weight must be above 0, got only zeros"),
        ({"weights": [0, [1, 0]]}, "some weight must be above 0, got only zeros"),
        ({"weights": [[1, 2, 3], [1, 2]]}, r"weights must be for equally many prompts, got \[2, 3\]"),
    ],
)
def test_invalid_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^Ensemble: {message}"):
        dk.Ensemble(**{"models": always(0.5, 0.5), **options})


def test_there_must_be_as_many_weights_as_prompts() -> None:
    with pytest.raises(
        dk.DecodekitError, match=r"^Ensemble: a weight must be one number, .* got 2 for 1 prompts"
    ):
        after(dk.Ensemble(always(0.5, 0.5), [1, [1, 2]]), [0.5, 0.5])


@pytest.mark.parametrize("average", ["prob", "log_prob"])
@pytest.mark.parametrize("models", [HashModel(9, 5), SPARSE, [SPARSE, HashModel(9, 5)]])
def test_an_ensemble_keeps_the_contract_of_processors(models: Any, average: Any) -> None:  # noqa: ANN401
    check_processor(dk.Ensemble(models, average=average), max_examples=10)


@pytest.mark.parametrize("average", ["prob", "log_prob"])
def test_an_ensemble_per_prompt_keeps_the_contract_of_processors(average: Any) -> None:  # noqa: ANN401
    second = HashModel(9, 5)
    check_processor(
        lambda numbers: dk.Ensemble(second, [1, [0.5 * n for n in numbers]], average), max_examples=20
    )
