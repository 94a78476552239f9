"""The loop: what it is given, what it refuses, and that memory and cache follow their rows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float32, Int64
from torch import Tensor

import decodekit as dk
from decodekit.engine import step as stepping
from decodekit.models.protocols import Session
from decodekit.testing import HashModel, MarkovModel, check_captures, check_model
from decodekit.testing.strategies import prompts


class AtMost(dk.LogitsProcessor):
    """Bans a token once it has been said `limit` times, and counts in its memory."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def init(self, history: dk.History) -> tuple[Tensor, Tensor]:
        rows = len(history.tokens)
        return torch.zeros(rows, 6, dtype=torch.long, device=history.tokens.device), history.position.clone()

    def apply(
        self, history: dk.History, scores: Tensor, memory: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        count, start = memory
        last = history.tokens.index_select(1, (history.position - 1).clamp(min=0).view(1))
        count = count.scatter_add(1, last, (history.position > start).long().expand_as(last))
        return scores.masked_fill(count >= self.limit, -torch.inf), (count, start)


class AtMostRecounted(dk.StatelessProcessor):
    """The same, counting the whole text anew at every step."""

    def __init__(self, limit: int, prompt_columns: int) -> None:
        self.limit = limit
        self.prompt_columns = prompt_columns

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        new = history.valid & (torch.arange(history.tokens.shape[1]) >= self.prompt_columns)
        count = torch.zeros_like(scores, dtype=torch.long).scatter_add(1, history.tokens, new.long())
        return scores.masked_fill(count >= self.limit, -torch.inf)


def beam_texts(processor: dk.LogitsProcessor, batch: list[list[int]], seed: int) -> list[list[list[int]]]:
    search = dk.BeamSearch(3, num_return=3)
    return dk.decode(HashModel(6, seed), batch, search, processor, max_new_tokens=5).hypotheses()


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(batch=prompts(vocab=6), seed=st.integers(0, 2**31))
def test_memory_follows_its_beam(batch: list[list[int]], seed: int) -> None:
    recounted = AtMostRecounted(1, max(map(len, batch)))
    assert beam_texts(recounted, batch, seed) == beam_texts(AtMost(1), batch, seed)


def test_without_the_reorder_of_memory_the_law_above_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "reorder_memory", lambda memory, source_rows: memory)  # noqa: ARG005
    wrong = sum(
        beam_texts(AtMostRecounted(1, 1), [[1]], seed) != beam_texts(AtMost(1), [[1]], seed)
        for seed in range(20)
    )
    assert wrong > 10


class ForgetfulSession:
    """A broken copy of a session: does not reorder its cache."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def advance(
        self,
        tokens: Int64[Tensor, " rows"],
        source_rows: Int64[Tensor, " rows"] | None,  # noqa: ARG002
    ) -> Float32[Tensor, "rows vocab"]:
        return self.session.advance(tokens, None)


class ForgetfulModel:
    def __init__(self, model: dk.Model) -> None:
        self.model = model

    def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[Session, Tensor]:
        session, logits = self.model.start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)
        return ForgetfulSession(session), logits


@pytest.mark.slow
def test_a_session_that_forgets_to_reorder_its_cache_is_caught() -> None:
    forgetful = ForgetfulModel(HashModel(6))
    with pytest.raises(AssertionError):
        check_model(forgetful, vocab=6)
    # Its own log-probabilities do not survive a second look either.
    out = dk.decode(forgetful, [[1], [2]], dk.BeamSearch(4), max_new_tokens=6)
    assert (out.log_prob - dk.score(HashModel(6), [[1], [2]], out).log_prob).abs().max() > 0.1


class Minimal(dk.Decoder[Any]):
    """A decoder that is no more than the contract: its state is the history and whether it is done."""

    rows_per_prompt = 1

    def init(self, history: dk.History, limits: dk.Limits) -> Any:  # noqa: ANN401
        return dk.RowState.start(history, limits)

    def step(self, scores: Tensor, state: Any) -> tuple[Any, dk.Selection]:  # noqa: ANN401
        return state.emit(scores.argmin(-1), scores)

    def finalize(self, state: Any) -> dk.Decoded:  # noqa: ANN401
        decoded: dk.Decoded = state.decoded(hypotheses=1)
        return decoded


def test_a_decoder_written_outside_the_package_needs_no_registration() -> None:
    model = MarkovModel([[0.1, 0.7, 0.2], [0.3, 0.1, 0.6], [0.4, 0.35, 0.25]])
    assert dk.decode(model, [[0]], Minimal(), max_new_tokens=3).hypotheses() == [[[0, 0, 0]]]


def test_a_model_needs_nothing_but_start() -> None:
    class Uniform:
        def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple[Any, Tensor]:  # noqa: ARG002
            rows = len(prompt.tokens) * rows_per_prompt

            class DecodingRun:
                def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:  # noqa: ARG002
                    return torch.zeros(rows, 4)

            return DecodingRun(), torch.zeros(rows, 4)

    out = dk.decode(Uniform(), [[0], [1, 2]], dk.BeamSearch(2), max_new_tokens=3)
    assert out.lengths.tolist() == [[3], [3]]
    assert out.texts is None


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
@pytest.mark.parametrize("option", ["max_new_tokens", "check_every", "trace"])
def test_numbers_must_be_integers_of_at_least_one(option: str, number: int) -> None:
    options = {"max_new_tokens": 2, option: number}
    with pytest.raises(dk.DecodekitError, match=f"decode: {option} must be an integer of at least 1"):
        dk.decode(HashModel(5), [[1]], dk.Greedy(), **options)


@pytest.mark.parametrize(
    "given", [2, [2], (2,), torch.tensor(2), torch.tensor([2]), np.int64(2), np.array([2])]
)
def test_ids_may_be_integers_of_any_kind(given: Any) -> None:  # noqa: ANN401
    model = MarkovModel([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert dk.decode(model, [[0]], dk.Greedy(), max_new_tokens=6, end_ids=given).hypotheses() == [[[1, 2]]]


@pytest.mark.parametrize("given", [1.0, [1.0], "", "1", {1: 2}, [True], [None]])
@pytest.mark.parametrize("option", ["end_ids", "pad_id"])
def test_ids_that_are_no_integers_are_refused(option: str, given: Any) -> None:  # noqa: ANN401
    with pytest.raises(dk.DecodekitError, match="end_ids and pad_id must be integers"):
        dk.decode(HashModel(5), [[1]], dk.Greedy(), max_new_tokens=2, **{option: given})


@pytest.mark.parametrize("wrong", [lambda scores: None, lambda scores: scores[:, 1:]])  # noqa: ARG005
def test_a_processor_that_returns_something_else_is_refused(wrong: Callable[[Tensor], Any]) -> None:
    class Other(dk.StatelessProcessor):
        def process(self, history: dk.History, scores: Tensor) -> Tensor:  # noqa: ARG002
            return wrong(scores)

    with pytest.raises(dk.DecodekitError, match="processors must return scores of the shape"):
        dk.decode(HashModel(5), [[1]], dk.Greedy(), Other(), max_new_tokens=2)


@pytest.mark.parametrize("options", [{"end_ids": 5}, {"end_ids": [1, -1]}, {"pad_id": 9}])
def test_ids_must_be_in_the_vocabulary(options: dict[str, Any]) -> None:
    with pytest.raises(dk.DecodekitError, match=r"decode: (end|pad)_ids? must be an id of the model, in"):
        dk.decode(HashModel(5), [[1]], dk.Greedy(), max_new_tokens=2, **options)


def test_end_ids_given_outrank_the_models_and_none_can_be_given() -> None:
    model = MarkovModel([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], end_ids=(2,))
    assert dk.decode(model, [[0]], dk.Greedy(), max_new_tokens=6).hypotheses() == [[[1, 2]]]
    assert dk.decode(model, [[0]], dk.Greedy(), max_new_tokens=6, end_ids=1).hypotheses() == [[[1]]]
    assert dk.decode(model, [[0]], dk.Greedy(), max_new_tokens=4, end_ids=()).lengths.tolist() == [[4]]


def test_what_is_not_a_model_is_refused() -> None:
    with pytest.raises(dk.DecodekitError, match="decode: model must be a Model or a transformers model"):
        dk.decode("gpt2", [[1]], dk.Greedy(), max_new_tokens=2)  # type: ignore[arg-type]
    with pytest.raises(dk.DecodekitError, match="decode: model must be a Model or a transformers model"):
        dk.decode(dk.HFModel, [[1]], dk.Greedy(), max_new_tokens=2)  # type: ignore[arg-type]
    with pytest.raises(dk.ModelError, match="HFModel: model must be a transformers model, got Linear"):
        dk.decode(torch.nn.Linear(2, 2), [[1]], dk.Greedy(), max_new_tokens=2)


@pytest.mark.parametrize("wrong", ["greedy", None, dk.Greedy, 5])
def test_what_is_not_a_decoder_is_refused(wrong: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match="decode: decoder must be a Decoder such as"):
        dk.decode(HashModel(5), [[1]], wrong, max_new_tokens=2)


@pytest.mark.parametrize("wrong", [None, 5, dk.TopK, [None], ["top-k"]])
def test_what_is_not_a_processor_is_refused(wrong: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=r"(decode|Chain): (every )?processor must be a"):
        dk.decode(HashModel(5), [[1]], dk.Greedy(), wrong, max_new_tokens=2)


class Nan(dk.StatelessProcessor):
    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        return scores.masked_fill((history.tokens[:, :1] == 2) & (history.position > 2), torch.nan)


@pytest.mark.parametrize("decoder", [dk.Greedy(), dk.Sample(2, seeds=[1, 2]), dk.BeamSearch(2)])
@pytest.mark.parametrize("check_every", [1, 4])
def test_scores_that_are_not_numbers_are_an_error_that_names_the_prompt(
    decoder: dk.Decoder[Any], check_every: int
) -> None:
    with pytest.raises(dk.DecodingError, match="for prompt 1 some were NaN"):
        dk.decode(HashModel(5), [[1], [2]], decoder, Nan(), max_new_tokens=5, check_every=check_every)


def test_processors_may_be_one_or_several_and_their_order_counts() -> None:
    model = MarkovModel([[0.5, 0.3, 0.2]] * 3)
    one = dk.decode(model, [[0]], dk.Greedy(), dk.SuppressTokens([0]), max_new_tokens=1)
    several = dk.decode(
        model, [[0]], dk.Greedy(), [dk.SuppressTokens([0]), dk.SuppressTokens([1])], max_new_tokens=1
    )
    assert (one.hypotheses(), several.hypotheses()) == ([[[1]]], [[[2]]])


def test_on_step_is_called_after_every_step() -> None:
    steps: list[int] = []
    dk.decode(HashModel(5), [[1]], dk.Greedy(), max_new_tokens=4, on_step=steps.append)
    assert steps == [1, 2, 3, 4]


def test_decoding_leaves_no_trace_in_autograd() -> None:
    out = dk.decode(HashModel(5), [[1]], dk.Greedy(), max_new_tokens=4)
    assert not out.token_log_probs.requires_grad
    assert not out.tokens.is_inference()  # so that they can be trained on


@pytest.mark.parametrize(
    "make", [dk.Greedy, dk.Sample, lambda: dk.Sample(2, seeds=[1, 2, 3]), lambda: dk.BeamSearch(4)]
)
def test_a_whole_step_can_be_captured(make: Callable[[], dk.Decoder[Any]]) -> None:
    processors = [
        dk.RepetitionPenalty(1.3),
        dk.NoRepeatNGram(2),
        dk.MinNewTokens(3, [2, 7]),
        dk.SuppressTokens([5]),
        dk.Temperature(0.8),
        dk.TopK(20),
        dk.TopP(0.9),
        dk.MinP(0.01),
    ]
    check_captures(make(), processors)
