"""Hidden states, early layers and attention, compared with a plain forward pass over each row."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

import decodekit as dk
from decodekit.models.hf.forwards.model_outputs import layer_numbers
from tests.equivalence.families import ENCODER_DECODERS, START, build

FAMILIES = ("gpt2", "llama", "mistral-window", "gemma2-mixed", "bloom", "opt", "t5", "bart", "marian")
TEXTS = [[8, 9, 10, 11, 12, 13], [14], [15, 16, 17]]
ROWS, STEPS = 3, 4
SIZES: dict[str, Any] = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@cache
def single(family: str) -> Any:  # noqa: ANN401 - a model of transformers
    """In float32: eager attention cannot mask padding in float64."""
    return copy.deepcopy(build(family)).float()


def seen(model: Any, prompt: dk.Prompt, number: int, text: list[int]) -> dict[str, Tensor]:  # noqa: ANN401
    """What the model itself shows of one text, without padding and cache."""
    alone = copy.deepcopy(model)
    alone.set_attn_implementation("eager")
    asked = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}
    with torch.no_grad():
        if prompt.source is None:
            out = alone(torch.tensor([text]), **asked)
            states, attention = out.hidden_states, out.attentions
            before = int(prompt.mask[number].sum())
            place, valid = slice(0, before), prompt.mask[number]
        else:
            valid = prompt.source.valid[number]
            source = prompt.source.tokens[number][valid][None]
            out = alone(source, decoder_input_ids=torch.tensor([text]), **asked)
            states, attention = out.decoder_hidden_states, out.cross_attentions
            place = slice(None)
        head = alone.get_output_embeddings()
        layers = torch.stack([head(states[layer][0, -1]) for layer in range(len(states) - 1)])
    weights = torch.zeros(len(valid))
    weights[valid] = attention[-1][0, :, -1, place].mean(0).float()
    last = out.logits[0, -1:]
    return {
        "hidden": states[-1][0, -1],
        "prompt_hidden": states[-1][0],
        "layer_logits": torch.cat([layers, last]),
        "attention": weights,
        "logits": last[0],
    }


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize("cached", ["rows", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_equal_those_of_a_plain_forward_pass_over_each_row(
    family: str,
    cached: Any,  # noqa: ANN401 - a literal
) -> None:
    model, reads_source = single(family), family in ENCODER_DECODERS
    hf = dk.HFModel(model, cache=cached)
    prompt = dk.Prompt.from_ids(TEXTS)
    if reads_source:  # padded on the left; only T5 counts no positions, and takes begun texts with padding
        source = dk.core.history.Source(prompt.tokens, prompt.mask)
        begun = [[START, 9], [START], [START, 8, 8]] if family == "t5" else [[START, 9]] * 3
        prompt = dk.Prompt.from_ids(begun).with_source(source)
    outputs_spec = dk.ModelOutputsSpec(hidden=True, layers=() if reads_source else (0, 1, 2), attention=True)
    capacity = prompt.tokens.shape[1] + STEPS
    session, logits = hf.start_with_outputs(
        prompt, rows_per_prompt=ROWS, capacity=capacity, outputs_spec=outputs_spec
    )
    texts = [text for text in prompt.ids() for _ in range(ROWS)]
    generator = torch.Generator().manual_seed(0)
    for number in range(STEPS):
        shown = session.model_outputs
        assert (shown.prompt_hidden is not None) == (number == 0)
        assert (shown.layer_logits is None) == reads_source
        for row, text in enumerate(texts):
            expected = seen(model, prompt, row // ROWS, text)
            close(logits[row], expected["logits"])
            for name in ("hidden", "layer_logits", "attention"):
                if (part := getattr(shown, name)) is not None:
                    close(part[row], expected[name])
            if shown.prompt_hidden is not None and row % ROWS == 0:
                states = shown.prompt_hidden[row // ROWS]
                assert not states[: -len(text)].any()
                close(states[-len(text) :], expected["prompt_hidden"])
        moves = torch.randint(0, ROWS, (len(texts),), generator=generator)
        moves += torch.arange(len(texts)) // ROWS * ROWS
        tokens = torch.randint(8, 30, (len(texts),), generator=generator)
        if number == 1:  # every row continues itself
            moves = torch.arange(len(texts))
        appended = zip(moves.tolist(), tokens.tolist(), strict=True)
        texts = [[*texts[source_row], token] for source_row, token in appended]
        logits = session.advance(tokens, None if number == 1 else moves)


def close(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == torch.float32
    # Single precision, through two layers of large weights.
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bart"])
def test_states_and_layers_come_with_the_logits_of_start(family: str) -> None:
    hf = dk.HFModel(build(family))
    prompt = dk.Prompt.of(TEXTS, hf.vocabulary)
    layers = () if family in ENCODER_DECODERS else (1,)
    capacity = prompt.tokens.shape[1] + 1
    for outputs_spec in (dk.ModelOutputsSpec(hidden=True), dk.ModelOutputsSpec(layers=layers)):
        runs = (
            hf.start(prompt, rows_per_prompt=2, capacity=capacity),
            hf.start_with_outputs(prompt, rows_per_prompt=2, capacity=capacity, outputs_spec=outputs_spec),
        )
        tokens, moves = torch.tensor([8, 9, 8, 9, 8, 9]), torch.tensor([1, 1, 2, 3, 5, 4])
        (expected, first), (got, also_first) = runs
        assert torch.equal(first, also_first)
        assert torch.equal(expected.advance(tokens, moves), got.advance(tokens, moves))


def test_given_encoder_states_keep_the_columns_of_their_source() -> None:
    hf = dk.HFModel(single("bart"))
    prompt = dk.Prompt.of(TEXTS, hf.vocabulary)
    source = prompt.source
    assert source is not None
    states = hf.model.get_encoder()(source.tokens, source.valid.long()).last_hidden_state.detach()
    ready = dk.Prompt(prompt.tokens, prompt.mask, source, states)
    expected, got = (
        hf.start_with_outputs(
            one, rows_per_prompt=2, capacity=3, outputs_spec=dk.ModelOutputsSpec(attention=True)
        )[0].model_outputs
        for one in (prompt, ready)
    )
    assert expected.attention is not None and got.attention is not None  # noqa: PT018 - for the type checker
    close(got.attention, expected.attention)


def test_the_model_is_left_as_it_was_also_after_an_error() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SIZES, n_embd=32, n_layer=2, n_head=4)).train()
    hf = dk.HFModel(model)
    prompt, outputs_spec = (
        dk.Prompt.from_ids(TEXTS),
        dk.ModelOutputsSpec(hidden=True, layers=(1,), attention=True),
    )
    assert model.config._attn_implementation == "sdpa"
    session, _ = hf.start_with_outputs(prompt, rows_per_prompt=1, capacity=9, outputs_spec=outputs_spec)
    with pytest.raises(IndexError):
        session.advance(torch.tensor([99, 99, 99]), None)  # there is no such id
    assert model.config._attn_implementation == "sdpa"
    assert model.training
    assert not model._forward_pre_hooks
    out = model(prompt.tokens)
    assert out.hidden_states is None
    assert out.attentions is None


def test_model_and_session_keep_the_protocols_of_outputs() -> None:
    hf, prompt = dk.HFModel(single("gpt2")), dk.Prompt.from_ids(TEXTS)
    assert isinstance(hf, dk.ModelWithOutputs)
    outputs_spec = dk.ModelOutputsSpec(hidden=True)
    session, _ = hf.start_with_outputs(prompt, rows_per_prompt=1, capacity=9, outputs_spec=outputs_spec)
    assert isinstance(session, dk.SessionWithOutputs)
    assert isinstance(session.model_outputs, dk.ModelOutputs)
    assert not isinstance(hf.start(prompt, rows_per_prompt=1, capacity=9)[0], dk.SessionWithOutputs)


def test_the_model_can_be_trained_afterwards() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **LLAMA))
    prompt, outputs_spec = (
        dk.Prompt.from_ids(TEXTS),
        dk.ModelOutputsSpec(hidden=True, layers=(1,), attention=True),
    )
    session, logits = dk.HFModel(model).start_with_outputs(
        prompt, rows_per_prompt=1, capacity=9, outputs_spec=outputs_spec
    )
    assert not any(part.is_inference() for part in (*session.model_outputs, logits) if part is not None)
    model(prompt.tokens).logits.sum().backward()


@pytest.mark.parametrize(
    "model",
    [
        MambaForCausalLM(MambaConfig(**SIZES, hidden_size=16, num_hidden_layers=2, state_size=4)),
        RwkvForCausalLM(RwkvConfig(**SIZES, hidden_size=16, num_hidden_layers=2)),
    ],
)
def test_a_recurrent_model_returns_states_and_has_no_attention(model: Any) -> None:  # noqa: ANN401
    hf, prompt = dk.HFModel(model.eval()), dk.Prompt.from_ids([[3, 4, 5]])
    outputs_spec = dk.ModelOutputsSpec(hidden=True, layers=(1,))
    session, _ = hf.start_with_outputs(prompt, rows_per_prompt=1, capacity=5, outputs_spec=outputs_spec)
    session.advance(torch.tensor([6]), None)
    states = model(torch.tensor([[3, 4, 5, 6]]), output_hidden_states=True, use_cache=False).hidden_states
    assert session.model_outputs.hidden is not None
    torch.testing.assert_close(session.model_outputs.hidden, states[-1][:, -1].detach())
    with pytest.raises(dk.ModelError, match="Recurrent models have none"):
        hf.start_with_outputs(
            prompt, rows_per_prompt=1, capacity=5, outputs_spec=dk.ModelOutputsSpec(attention=True)
        )


def test_a_model_that_cannot_change_to_eager_attention_must_be_loaded_with_it() -> None:
    config = FalconConfig(**SIZES, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    prompt, outputs_spec = dk.Prompt.from_ids(TEXTS), dk.ModelOutputsSpec(attention=True)
    for kind in ("sdpa", "eager"):
        model = FalconForCausalLM._from_config(config, attn_implementation=kind).eval()
        start = dk.HFModel(model).start_with_outputs
        if kind == "sdpa":
            with pytest.raises(dk.ModelError, match="loaded with attn_implementation='eager'"):
                start(prompt, rows_per_prompt=2, capacity=9, outputs_spec=outputs_spec)
        else:
            session, _ = start(prompt, rows_per_prompt=2, capacity=9, outputs_spec=outputs_spec)
            assert session.model_outputs.attention is not None
            close(session.model_outputs.attention.sum(-1), torch.ones(6))


# (layers, tied) -> low and high, by the rule of DoLa in transformers 4.55
LAYER_SETS = {
    (6, False): ([0, 2], [3, 5]),
    (6, True): ([2], [3, 5]),
    (2, True): ([1], [1]),
    (1, True): ([0], [0]),
    (1, False): ([0], [0]),
    (3, True): ([2], [1]),
    (32, False): ([*range(0, 16, 2)], [*range(16, 32, 2)]),
    (40, True): ([*range(2, 20, 2)], [*range(20, 40, 2)]),
    (41, False): ([*range(0, 20, 2)], [*range(21, 41, 2)]),
    (80, True): ([*range(2, 20, 2)], [*range(60, 80, 2)]),
}


@pytest.mark.parametrize(("layers", "is_tied"), LAYER_SETS)
def test_low_and_high_layers_are_every_second_of_a_half(layers: int, is_tied: bool) -> None:  # noqa: FBT001
    config = GPT2Config(**SIZES, n_embd=4, n_layer=layers, n_head=1, tie_word_embeddings=is_tied)
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    low, high = LAYER_SETS[layers, is_tied]
    assert tuple(low) == layer_numbers(model, dk.ModelOutputsSpec(layers="low"))
    assert tuple(high) == layer_numbers(model, dk.ModelOutputsSpec(layers="high"))
    assert layer_numbers(model, dk.ModelOutputsSpec(layers=(layers, 0))) == (layers, 0)
    with pytest.raises(dk.ModelError, match=f"at most {layers}, which GPT2LMHeadModel has, got"):
        layer_numbers(model, dk.ModelOutputsSpec(layers=(0, layers + 1)))


def test_early_layers_of_an_encoder_decoder_are_refused() -> None:
    hf = dk.HFModel(single("bart"))
    prompt = dk.Prompt.of(TEXTS, hf.vocabulary)
    with pytest.raises(dk.ModelError, match="is an encoder-decoder"):
        hf.start_with_outputs(
            prompt, rows_per_prompt=1, capacity=5, outputs_spec=dk.ModelOutputsSpec(layers="low")
        )


@pytest.mark.parametrize("layers", ["middle", (-1,), (True,), [1], 1, None])
def test_layers_are_numbers_or_a_half(layers: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="ModelOutputsSpec: layers must be a tuple of integers"):
        dk.ModelOutputsSpec(layers=layers)
