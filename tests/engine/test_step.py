"""One step: the engine gives every decoder the model's scores, and refuses a wrong result by name."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import decodekit as dk
from decodekit.testing import HashModel


class SecondBest(dk.RowDecoder):
    """A sampler of a user's own, in one method."""

    def choose(self, scores: Tensor, state: dk.RowState) -> Tensor:  # noqa: ARG002
        return scores.topk(2).indices[:, 1]


def test_a_row_decoder_reports_the_log_probabilities_of_the_model() -> None:
    model, prompts = HashModel(7), [[1], [2, 3]]
    out = dk.decode(model, prompts, SecondBest(), dk.Temperature(0.1), max_new_tokens=5)
    rescored = dk.score(model, prompts, out).token_log_probs
    torch.testing.assert_close(out.token_log_probs, rescored)
    assert (out.token_log_probs < 0).all()


def test_a_row_decoder_emits_the_chosen_tokens() -> None:
    model = dk.testing.MarkovModel([[0.7, 0.2, 0.1], [0.1, 0.7, 0.2], [0.2, 0.1, 0.7]])
    out = dk.decode(model, [[0]], SecondBest(), max_new_tokens=4)
    assert out.hypotheses() == [[[1, 2, 0, 1]]]


def test_a_row_decoder_keeps_the_laws_of_decoders() -> None:
    dk.testing.check_decoder(SecondBest(), max_examples=10)


class Returns(dk.Decoder[dk.RowState]):
    """A decoder whose step returns the wrong thing."""

    rows_per_prompt = 1

    def __init__(self, result: Any) -> None:  # noqa: ANN401
        self.result = result

    def init(self, history: dk.History, limits: dk.Limits) -> dk.RowState:
        return dk.RowState.start(history, limits)

    def step(self, scores: Tensor, state: dk.RowState) -> Any:  # noqa: ANN401, ARG002
        return self.result(state)

    def finalize(self, state: dk.RowState) -> dk.Decoded:
        return state.decoded(hypotheses=1)


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (lambda state: None, "got None"),  # noqa: ARG005
        (lambda state: torch.tensor([1]), r"got tensor\(\[1\]\)"),  # noqa: ARG005
        (lambda state: state, "got a RowState"),
        (lambda state: dk.Selection(torch.tensor([1])), "got a Selection"),  # noqa: ARG005
        (lambda state: (state, torch.tensor([1])), "got a tuple of RowState and Tensor"),
        (lambda state: (state, dk.Selection(torch.tensor([1.0]))), "float32 tokens of shape"),
        (lambda state: (state, dk.Selection(torch.tensor([1, 2]))), r"int64 tokens of shape \(2,\)"),
        (lambda state: (dk.Selection(torch.tensor([1])), state), "got a tuple of Selection and RowState"),
    ],
)
def test_a_step_that_returns_the_wrong_thing_is_refused(result: Any, found: str) -> None:  # noqa: ANN401
    with pytest.raises(dk.DecodekitError, match=f"Returns.step must return its new state and .*{found}"):
        dk.decode(HashModel(5), [[1]], Returns(result), max_new_tokens=2)


class Bare(NamedTuple):
    """A state that cannot hold the model's scores."""

    history: dk.History
    done: Tensor


class Forgets(Returns):
    """A decoder that could not report log-probabilities."""

    def init(self, history: dk.History, limits: dk.Limits) -> Any:  # noqa: ANN401, ARG002
        return Bare(history, torch.tensor(False))


def test_a_state_without_the_scores_of_the_model_is_refused() -> None:
    with pytest.raises(dk.DecodekitError, match="the state of Forgets must be a NamedTuple with the field"):
        dk.decode(HashModel(5), [[1]], Forgets(None), max_new_tokens=2)
