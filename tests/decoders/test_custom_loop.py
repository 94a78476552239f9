"""Algorithms with a loop of their own: what `decode` hands them, and what it refuses for them."""

from collections.abc import Generator
from typing import Any, NamedTuple

import pytest
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

import decodekit as dk
from decodekit.engine.decode import decode_steps


class GreedyOnePromptAtATime(dk.CustomLoop):
    """Greedy search with a session for each prompt, one after the other."""

    def run(
        self, model: dk.Model, processor: dk.LogitsProcessor, request: dk.DecodeRequest
    ) -> Generator[None, None, dk.Decoded]:
        parts = []
        for number in range(len(request.prompt.tokens)):
            prompt = request.prompt.take(torch.tensor([number]))
            capacity = prompt.tokens.shape[1] + request.max_new_tokens
            session, logits = model.start(prompt, rows_per_prompt=1, capacity=capacity)
            limits, history = dk.Limits.of(request, logits.shape[-1]), prompt.history(capacity, 1)
            greedy, memory = dk.Greedy(), processor.init(history)
            state = greedy.init(history, limits)
            while not state.done:
                yield
                state = state._replace(model_scores=logits)
                scores, memory = processor.apply(state.history, logits, memory)
                state, selection = greedy.step(scores, state)
                logits = session.advance(selection.tokens, None)
            parts.append(greedy.finalize(state))
        new = max(part.tokens.shape[-1] for part in parts)

        def join(name: str, fill: float) -> Tensor:
            pads = (
                torch.nn.functional.pad(getattr(part, name), (0, new - part.tokens.shape[-1]), value=fill)
                for part in parts
            )
            return torch.cat(list(pads))

        return dk.Decoded(
            tokens=join("tokens", parts[0].pad_id),
            lengths=torch.cat([part.lengths for part in parts]),
            finish_reason=[reasons for part in parts for reasons in part.finish_reason],
            valid=torch.cat([part.valid for part in parts]),
            token_log_probs=join("token_log_probs", 0.0),
            score=torch.cat([part.score for part in parts]),
            parents=join("parents", -1),
            pad_id=parts[0].pad_id,
        )


PROMPTS = [[1, 2], [3], [4, 5, 6]]


def test_decode_hands_over_model_prompts_processors_and_limits() -> None:
    model = dk.testing.HashModel(9, end_ids=(2,))
    for options in ({}, {"end_ids": 3}, {"stop": dk.EndIds([4, 5, 6])}):
        arguments: Any = {"max_new_tokens": 7, **options}
        processors = [dk.NoRepeatNGram(2), dk.SuppressTokens([0])]
        expected = dk.decode(model, PROMPTS, dk.Greedy(), processors, **arguments)
        got = dk.decode(model, PROMPTS, GreedyOnePromptAtATime(), processors, **arguments)
        assert expected.hypotheses() == got.hypotheses()
        assert expected.finish_reason == got.finish_reason
        assert torch.equal(expected.log_prob, got.log_prob)
        assert got.prompt is not None


def test_on_step_is_called_after_every_pause() -> None:
    seen: list[int] = []
    dk.decode(
        dk.testing.HashModel(9), [[1], [2]], GreedyOnePromptAtATime(), max_new_tokens=2, on_step=seen.append
    )
    assert seen == [1, 2, 3, 4]


def test_what_would_watch_its_steps_is_refused() -> None:
    model = dk.testing.HashModel(9)
    for options in ({"trace": 2}, {"check_every": 2}):
        with pytest.raises(TypeError, match="runs its own loop"):
            dk.decode(model, [[1]], GreedyOnePromptAtATime(), max_new_tokens=2, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="runs its own loop"):
        next(dk.stream(model, [[1]], GreedyOnePromptAtATime(), max_new_tokens=2))  # type: ignore[type-var, arg-type]


class Watching(NamedTuple):
    rows: dk.RowState
    seen: dk.ModelOutputs
    model_scores: Tensor | None = None

    @property
    def history(self) -> dk.History:
        return self.rows.history

    @property
    def done(self) -> Bool[Tensor, ""]:
        return self.rows.done


class Nearest(dk.Decoder[Watching]):
    """Says the token that the shown layers, states and attention all vote for; one step late."""

    rows_per_prompt = 2
    outputs_spec = dk.ModelOutputsSpec(hidden=True, layers=(0, 2), attention=True)

    def init(self, history: dk.History, limits: dk.Limits) -> Watching:
        return Watching(dk.RowState.start(history, limits), dk.ModelOutputs())

    def on_model_outputs(self, model_outputs: dk.ModelOutputs, state: Watching) -> Watching:
        return state._replace(seen=model_outputs._replace(prompt_hidden=None))

    def step(self, scores: Float32[Tensor, "rows vocab"], state: Watching) -> tuple[Watching, dk.Selection]:
        hidden, layers, attention = state.seen.hidden, state.seen.layer_logits, state.seen.attention
        assert hidden is not None
        assert layers is not None
        assert attention is not None
        choice = scores + layers.sum(1) * hidden.sum(-1, keepdim=True) + attention[:, -1:]
        rows, selection = state.rows._replace(model_scores=state.model_scores).emit(choice.argmax(-1), scores)
        return Watching(rows, dk.ModelOutputs()), selection

    def finalize(self, state: Watching) -> dk.Decoded:
        return state.rows.decoded(hypotheses=2)


def test_a_decoder_sees_what_it_asks_the_model_to_show() -> None:
    prompts = [[1, 2, 3], [4]]
    out = dk.decode(dk.testing.HashModelWithOutputs(9), prompts, Nearest(), max_new_tokens=5)
    for number, prompt in enumerate(prompts):
        alone = dk.decode(dk.testing.HashModelWithOutputs(9), [prompt], Nearest(), max_new_tokens=5)
        assert out.hypotheses()[number] == alone.hypotheses()[0]
    assert (
        out.hypotheses()
        != dk.decode(
            dk.testing.HashModelWithOutputs(9), prompts, dk.Sample(2, seeds=[1, 2]), max_new_tokens=5
        ).hypotheses()
    )


def test_a_model_that_shows_nothing_is_refused_for_a_decoder_that_looks() -> None:
    with pytest.raises(dk.DecodekitError, match="Nearest needs a model that"):
        dk.decode(dk.testing.MarkovModel([[1.0]]), [[0]], Nearest(), max_new_tokens=1)


def test_a_decoder_with_a_delay_is_given_that_many_steps_more() -> None:
    class Late(Nearest):
        delay = 2

    model = dk.testing.HashModelWithOutputs(9)
    steps = decode_steps(model, [[1]], Late(), max_new_tokens=3, check_every=9)
    assert [progress.number for progress in steps] == [1, 2, 3, 4, 5]


def test_what_to_reveal_is_checked_and_joined() -> None:
    assert not dk.ModelOutputsSpec()
    both = dk.ModelOutputsSpec(hidden=True) | dk.ModelOutputsSpec(layers=(1, 2))
    assert both == dk.ModelOutputsSpec(hidden=True, layers=(1, 2))
    with pytest.raises(ValueError, match=r"layers must be a tuple of integers .* got \(-1,\)"):
        dk.ModelOutputsSpec(layers=(-1,))
    with pytest.raises(dk.DecodekitError, match="layers must be set only once"):
        _ = dk.ModelOutputsSpec(layers=(1,)) | dk.ModelOutputsSpec(layers=(2,))


def test_a_showing_model_keeps_its_protocols() -> None:
    model = dk.testing.HashModelWithOutputs(9)
    assert isinstance(model, dk.ModelWithOutputs)
    assert not isinstance(dk.testing.HashModel(9), dk.ModelWithOutputs)
    session, _ = model.start_with_outputs(
        dk.Prompt.from_ids([[1]]),
        rows_per_prompt=1,
        capacity=3,
        outputs_spec=dk.ModelOutputsSpec(hidden=True),
    )
    assert isinstance(session, dk.SessionWithOutputs)
    assert session.model_outputs.hidden is not None
    assert session.model_outputs.attention is None
