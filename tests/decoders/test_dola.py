"""Decoding by contrasting layers."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float32, Int64
from torch import Tensor

import decodekit as dk
from decodekit.testing import HashModel, HashModelWithOutputs, MarkovModel, check_decoder
from decodekit.testing.strategies import prompts
from tests.equivalence.families import build
from tests.recorded.recorded import Case, cases, model

PROMPTS = [[1, 2], [3], [4, 5, 6, 0]]
LAYERS = (0, 3, 5)


class MarkovLayersSession:
    def __init__(self, last: dk.Session, early: list[dk.Session], logits: list[Tensor]) -> None:
        self._last, self._early = last, early
        self.model_outputs = dk.ModelOutputs(layer_logits=torch.stack(logits, 1))

    def advance(
        self, tokens: Int64[Tensor, " rows"], source_rows: Int64[Tensor, " rows"] | None
    ) -> Float32[Tensor, "rows vocab"]:
        shown = [session.advance(tokens, source_rows) for session in self._early]
        self.model_outputs = dk.ModelOutputs(layer_logits=torch.stack(shown, 1))
        return self._last.advance(tokens, source_rows)


class MarkovLayers(MarkovModel):
    """A matrix for the last layer, and one for each of the others."""

    def __init__(self, last: list[list[float]], *early: list[list[float]]) -> None:
        super().__init__(last)
        self._early = [MarkovModel(transitions) for transitions in early]

    def start_with_outputs(
        self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int, outputs_spec: dk.ModelOutputsSpec
    ) -> tuple[MarkovLayersSession, Float32[Tensor, "rows vocab"]]:
        size: dict[str, Any] = {"rows_per_prompt": rows_per_prompt, "capacity": capacity}
        assert isinstance(outputs_spec.layers, tuple)
        started = [self._early[layer].start(prompt, **size) for layer in outputs_spec.layers]
        last, logits = self.start(prompt, **size)
        sessions: list[dk.Session] = [session for session, _ in started]
        return MarkovLayersSession(last, sessions, [first for _, first in started]), logits


def test_it_says_what_an_early_layer_does_not_know_yet() -> None:
    # 0.5 / 0.6 < 0.46 / 0.39 < 0.04 / 0.01, but the last is less than a tenth as likely as the first.
    last, early = [0.5, 0.46, 0.04], [0.6, 0.39, 0.01]
    toy = MarkovLayers([last] * 3, [early] * 3)
    for top, expected in ((0.1, 1), (0.08, 2), (0.07, 2), (0, 2), (0.93, 0), (1, 0)):
        out = dk.decode(toy, [[0]], dk.DoLa(layers=[0], relative_top=top), max_new_tokens=2)
        assert out.hypotheses() == [[[expected] * 2]]
        torch.testing.assert_close(out.token_log_probs.exp(), torch.full((1, 1, 2), last[expected]))


def test_of_several_layers_the_furthest_is_taken_on_every_row_by_itself() -> None:
    near, far = [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]
    last = [0.4, 0.4, 0.2]
    # After 0 the second layer is far, after 1 the first. Against `near` the second token gains most, against
    # `far` the first.
    toy = MarkovLayers([last] * 3, [near, far, near], [far, near, near])
    out = dk.decode(toy, [[0], [1], [2]], dk.DoLa(layers=(0, 1)), max_new_tokens=1)
    assert out.hypotheses() == [[[0]], [[0]], [[1]]]
    single = [dk.decode(toy, [[0], [1]], dk.DoLa(layers=[n]), max_new_tokens=1).hypotheses() for n in (0, 1)]
    assert single == [[[[1]], [[0]]], [[[0]], [[1]]]]


def contrast(last: list[float], layers: list[list[float]], top: float) -> list[float]:
    """The differences of one row, in Python's numbers."""

    def normalised(logits: list[float]) -> list[float]:
        total = math.log(sum(map(math.exp, logits)))
        return [logit - total for logit in logits]

    def distance(early: list[float]) -> float:
        terms = []
        for one, other in zip(final, early, strict=True):
            mean = (math.exp(one) + math.exp(other)) / 2
            terms.append(mean * (2 * math.log(mean) - one - other))
        return sum(terms) / 2

    final = normalised(last)
    early = max(map(normalised, layers), key=distance)
    floor = max(final) + math.log(top) if top else -math.inf
    return [one - other if one >= floor else -math.inf for one, other in zip(final, early, strict=True)]


@settings(max_examples=25, deadline=None, database=None, derandomize=True)
@given(
    batch=prompts(vocab=6),
    seed=st.integers(0, 2**31),
    layers=st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True),
    top=st.sampled_from([0, 0.01, 0.1, 0.5, 1]),
)
def test_greedily_it_says_the_argmax_of_the_slow_reference(
    batch: list[list[int]], seed: int, layers: list[int], top: float
) -> None:
    toy = HashModelWithOutputs(6, seed, end_ids=(1,))
    outputs_spec = dk.ModelOutputsSpec(layers=tuple(layers))
    out = dk.decode(toy, batch, dk.DoLa(layers=layers, relative_top=top), max_new_tokens=5)
    for prompt, (got,) in zip(batch, out.hypotheses(), strict=True):
        for number, token in enumerate(got):
            text = dk.Prompt.from_ids([prompt + got[:number]])
            session, logits = toy.start_with_outputs(
                text, rows_per_prompt=1, capacity=20, outputs_spec=outputs_spec
            )
            assert session.model_outputs.layer_logits is not None
            expected = contrast(logits[0].tolist(), session.model_outputs.layer_logits[0].tolist(), top)
            assert expected.index(max(expected)) == token


class ContrastedSession:
    def __init__(self, inner: Any, top: float) -> None:  # noqa: ANN401 - a session that reveals
        self._inner, self._top = inner, top

    def contrasted(self, logits: Float32[Tensor, "rows vocab"]) -> Float32[Tensor, "rows vocab"]:
        shown = self._inner.model_outputs.layer_logits.tolist()
        rows = zip(logits.tolist(), shown, strict=True)
        return torch.tensor([contrast(row, layers, self._top) for row, layers in rows])

    def advance(
        self, tokens: Int64[Tensor, " rows"], source_rows: Int64[Tensor, " rows"] | None
    ) -> Float32[Tensor, "rows vocab"]:
        return self.contrasted(self._inner.advance(tokens, source_rows))


class Contrasted:
    """A model whose logits are another one's differences between layers."""

    def __init__(self, inner: HashModelWithOutputs) -> None:
        self._inner, self.vocabulary = inner, inner.vocabulary

    def start(
        self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple[ContrastedSession, Float32[Tensor, "rows vocab"]]:
        inner, logits = self._inner.start_with_outputs(
            prompt,
            rows_per_prompt=rows_per_prompt,
            capacity=capacity,
            outputs_spec=dk.ModelOutputsSpec(layers=LAYERS),
        )
        session = ContrastedSession(inner, 0.1)
        return session, session.contrasted(logits)


@pytest.mark.parametrize(
    "inner",
    [
        dk.Greedy(),
        dk.Sample(3, seeds=[1, 2, 3]),
        dk.BeamSearch(3, num_return=3),
        dk.BeamSearch(3, scorer=dk.LengthPenalty(1.0), stop_rule=dk.Proved()),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "processor", [dk.Temperature(1.0), dk.RepetitionPenalty(1.3) | dk.TopP(0.8)], ids=repr
)
def test_a_decoder_says_what_it_would_say_over_a_model_of_the_differences(
    inner: dk.Decoder[Any], processor: dk.LogitsProcessor
) -> None:
    toy = HashModelWithOutputs(8, 5, end_ids=(2,))
    expected = dk.decode(Contrasted(toy), PROMPTS, inner, processor, max_new_tokens=6)
    got = dk.decode(toy, PROMPTS, dk.DoLa(inner, layers=LAYERS), processor, max_new_tokens=6)
    assert expected.hypotheses() == got.hypotheses()
    assert expected.finish_reason == got.finish_reason
    # The log-probabilities are the model's own.
    rescored = dk.score(toy, PROMPTS, got).token_log_probs[..., : got.tokens.shape[-1]]
    torch.testing.assert_close(rescored, got.token_log_probs[..., : rescored.shape[-1]], atol=1e-5, rtol=1e-5)
    assert dk.decode(toy, PROMPTS, inner, processor, max_new_tokens=6).hypotheses() != got.hypotheses()


@pytest.mark.slow
def test_it_keeps_the_laws_of_decoders() -> None:
    for inner in (dk.Greedy(), dk.BeamSearch(3, num_return=2), dk.ContrastiveSearch(3)):
        check_decoder(dk.DoLa(inner, layers="high"), model=HashModelWithOutputs, max_examples=6)
    check_decoder(
        lambda numbers: dk.DoLa(dk.Sample(2, seeds=numbers), layers=(1,), relative_top=0.0),
        model=HashModelWithOutputs,
        stop=dk.RepetitionLoop(2, 1),
        max_examples=6,
    )


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize("case", cases("transformers", "dola", "dola-batch"), ids=str)
def test_it_says_what_transformers_4_55_said_for_each_prompt_alone(case: Case) -> None:
    penalty = case.settings.get("repetition_penalty")
    out = dk.decode(
        model(case.model),
        case.prompts,
        dk.DoLa(layers=case.settings["dola_layers"]),
        () if penalty is None else dk.RepetitionPenalty(penalty),
        max_new_tokens=case.max_new_tokens,
        end_ids=case.end,
        pad_id=case.pad,
    )
    assert [[tokens] for tokens in case.alone] == out.hypotheses()


def test_a_batch_with_padding_gives_what_each_prompt_alone_gives() -> None:
    hf = dk.HFModel(build("llama"))
    texts = [[8, 9, 10, 11], [12], [13, 14]]
    decoder = dk.DoLa(layers=[0, 1], relative_top=0.01)
    out = dk.decode(hf, texts, decoder, max_new_tokens=6, end_ids=())
    for text, got in zip(texts, out.hypotheses(), strict=True):
        assert dk.decode(hf, [text], decoder, max_new_tokens=6, end_ids=()).hypotheses() == [got]


def test_a_layer_that_allows_what_the_model_rules_out_is_the_furthest() -> None:
    last = [0.0, 0.6, 0.4]
    toy = MarkovLayers([last] * 3, [[0.0, 0.7, 0.3]] * 3, [[0.2, 0.1, 0.7]] * 3)
    for layers, expected in (((0,), 2), ((1,), 1), ((0, 1), 1), ((1, 0), 1)):
        out = dk.decode(toy, [[0]], dk.DoLa(layers=layers), max_new_tokens=1)
        assert out.hypotheses() == [[[expected]]]


def test_what_the_inner_decoder_looks_at_is_shown_too() -> None:
    inner = dk.BeamSearch(2, scorer=dk.CoveragePenalty(0.5))
    assert dk.DoLa(inner, layers=[2]).outputs_spec == dk.ModelOutputsSpec(layers=(2,), attention=True)
    with pytest.raises(dk.DecodekitError, match="layers must be set only once"):
        _ = dk.DoLa(dk.DoLa(layers=[1]), layers=[2]).outputs_spec


def test_a_model_that_shows_no_layers_or_has_fewer_is_refused() -> None:
    with pytest.raises(dk.DecodekitError, match="DoLa needs a model that"):
        dk.decode(HashModel(6), [[3]], dk.DoLa(), max_new_tokens=3)
    with pytest.raises(dk.ModelError, match="layers must be at most 2, which LlamaForCausalLM has"):
        dk.decode(build("llama"), [[8]], dk.DoLa(layers=[3]), max_new_tokens=3)
    with pytest.raises(dk.ModelError, match="is an encoder-decoder"):
        dk.decode(build("t5"), [[8]], dk.DoLa(), max_new_tokens=3)


def test_the_inner_decoder_goes_step_by_step() -> None:
    own: Any = dk.Speculative(dk.PromptLookup())
    for inner in (own, dk.Greedy, None):
        with pytest.raises(TypeError, match="DoLa: inner must be a Decoder"):
            dk.DoLa(inner)


@pytest.mark.parametrize("layers", ["middle", "", (), [-1], [1.5], [True], 3, None])
def test_layers_are_numbers_or_a_half(layers: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="DoLa: layers must be 'low', 'high' or integers"):
        dk.DoLa(layers=layers)


@pytest.mark.parametrize("top", [-0.1, 1.1, math.nan, True, "0.1"])
def test_the_top_is_a_share(top: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"DoLa: relative_top must be in \[0, 1\], got"):
        dk.DoLa(relative_top=top)


def test_layers_may_be_any_sequence_of_numbers() -> None:
    assert (
        replace(dk.DoLa(layers=[1, 2])) == dk.DoLa(layers=torch.tensor([1, 2])) == dk.DoLa(layers=range(1, 3))
    )
