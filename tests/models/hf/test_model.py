"""Transformers models: caches, positions, padding and refusals."""

from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    MambaConfig,
    MambaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    RwkvConfig,
    RwkvForCausalLM,
)
from transformers.utils import ModelOutput

import decodekit as dk
from decodekit.testing import check_model
from tests.equivalence.families import FAMILIES, build

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}


def gpt2(**options: Any) -> GPT2LMHeadModel:  # noqa: ANN401
    torch.manual_seed(0)
    config = GPT2Config(
        **{"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, **IDS, **options}
    )
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(6)
    return model


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize("family", FAMILIES)
def test_advance_gives_what_a_fresh_start_gives_under_any_source_rows(family: str) -> None:
    # Rounding: float32 logits of models whose logits are of the order of 10.
    model = build(family, 0)
    check_model(dk.HFModel(model), vocab=model.config.vocab_size, tolerance=1e-3, max_examples=2)


def test_a_prompt_is_computed_once_and_only_then_widened() -> None:
    model, shapes = gpt2(), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),  # noqa: ARG005
        with_kwargs=True,
    )
    for cache, then in (("trie", (2, 5)), ("rows", (10, 1))):
        hf = dk.HFModel(model, cache=cache)
        for decoder in (dk.BeamSearch(5), dk.Sample(5, seeds=[1, 2])):
            dk.decode(hf, [[7] * 6, [8] * 6], decoder, max_new_tokens=3)  # asks the probe, the first time
            shapes.clear()
            dk.decode(hf, [[7] * 6, [8] * 6], decoder, max_new_tokens=3)
            assert shapes == [(2, 6), then, then]


def test_only_the_last_positions_logits_are_computed() -> None:
    model, shapes = gpt2(), []
    model.lm_head.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))  # noqa: ARG005
    for cache, then in (("trie", (2, 5, 61)), ("rows", (10, 1, 61))):
        hf = dk.HFModel(model, cache=cache)
        dk.decode(hf, [[7] * 6, [8] * 6], dk.BeamSearch(5), max_new_tokens=3)
        shapes.clear()
        dk.decode(hf, [[7] * 6, [8] * 6], dk.BeamSearch(5), max_new_tokens=3)
        assert shapes == [(2, 1, 61), then, then]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_logits_are_float32_whatever_the_models_precision(dtype: torch.dtype) -> None:
    hf = dk.HFModel(gpt2().to(dtype))
    prompt = dk.Prompt.from_ids([[5, 6], [7]])
    session, logits = hf.start(prompt, rows_per_prompt=2, capacity=5)
    later = session.advance(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 0, 3, 3]))
    for tensor in (logits, later):
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        assert tensor.shape == (4, 61)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_a_batch_gives_what_each_prompt_alone_gives(family: str) -> None:
    hf = dk.HFModel(build(family, 0))
    batch = [[5, 6, 7, 8, 9, 10], [11], [12, 13, 14]]
    for decoder in (dk.Greedy(), dk.BeamSearch(4, num_return=4)):
        together = dk.decode(hf, batch, decoder, dk.RepetitionPenalty(1.2), max_new_tokens=8)
        for number, prompt in enumerate(batch):
            alone = dk.decode(hf, [prompt], decoder, dk.RepetitionPenalty(1.2), max_new_tokens=8)
            assert together.hypotheses()[number] == alone.hypotheses()[0]


def test_ids_under_the_padding_do_not_matter() -> None:
    hf = dk.HFModel(gpt2())
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    tokens = torch.tensor([[9, 9, 5, 6], [5, 6, 7, 8]])
    junk = torch.tensor([[99, -1, 5, 6], [5, 6, 7, 8]])
    one, other = (
        dk.decode(hf, (ids, mask), dk.BeamSearch(3), dk.NoRepeatNGram(1), max_new_tokens=6).hypotheses()
        for ids in (tokens, junk)
    )
    assert one == other


def test_a_bare_model_is_wrapped_and_left_unchanged() -> None:
    model = gpt2(attn_pdrop=0.5, resid_pdrop=0.5)
    expected = dk.decode(model, [[5, 6]], dk.Greedy(), max_new_tokens=8).hypotheses()
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    config = model.config.to_dict()
    # Dropout is off while it decodes, and every module is in its own mode after.
    assert expected == dk.decode(model, [[5, 6]], dk.Greedy(), max_new_tokens=8).hypotheses()
    assert modes == [module.training for module in model.modules()]
    assert config == model.config.to_dict()
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.mostly_slow(8)
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_model_can_be_trained_on(family: str) -> None:
    model = build(family, 0)
    out = dk.decode(model, [[8, 9, 10], [11]], dk.BeamSearch(2), max_new_tokens=3)
    kept = [*model.parameters(), *model.buffers(), out.tokens, out.token_log_probs, out.score]
    assert not any(tensor.is_inference() for tensor in kept)
    with torch.enable_grad():
        model(out.sequences[1:, 2:]).logits.sum().backward()
    model.zero_grad()


def test_a_processor_may_write_to_the_scores_it_is_given() -> None:
    class InPlace(dk.StatelessProcessor):
        def process(self, history: dk.History, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
            scores[:, 7] = -torch.inf
            return scores

    out = dk.decode(gpt2(), [[5], [6]], dk.BeamSearch(2), InPlace(), max_new_tokens=6)
    assert not (out.tokens == 7).any()


def test_end_pad_and_bos_ids_are_the_generation_configs() -> None:
    model = gpt2()
    model.generation_config.eos_token_id = [4, 5]
    model.generation_config.pad_token_id = 6
    vocabulary = dk.HFModel(model).vocabulary
    assert (vocabulary.end_ids, vocabulary.pad_id, vocabulary.bos_id, vocabulary.size) == ((4, 5), 6, 1, 61)
    model.generation_config.eos_token_id = None
    assert dk.HFModel(model).vocabulary.end_ids == ()


def test_an_empty_prompt_starts_from_bos() -> None:
    hf = dk.HFModel(gpt2())
    empty, bos = (dk.decode(hf, prompt, dk.Greedy(), max_new_tokens=4) for prompt in ([[]], [[1]]))
    assert empty.hypotheses() == bos.hypotheses()


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(dk.PromptError, match=r"ids must be in \[0, 61\), and prompt 1 has 61"):
        dk.decode(gpt2(), [[1], [2, 61]], dk.Greedy(), max_new_tokens=2)


def test_prompts_beyond_the_models_positions_are_refused() -> None:
    with pytest.raises(
        dk.ModelError, match="must fit the 40 positions of GPT2LMHeadModel, got a prompt of 41"
    ):
        dk.decode(gpt2(), [[5] * 41], dk.Greedy(), max_new_tokens=1)
    with pytest.raises(dk.ModelError, match="got a prompt of 30 tokens and 12 new ones"):
        dk.decode(gpt2(), [[5] * 30, [6]], dk.Greedy(), max_new_tokens=12)
    # The last token is emitted and never read.
    assert dk.decode(gpt2(), [[5] * 30, [6]], dk.Greedy(), max_new_tokens=11).lengths.shape == (2, 1)


def test_a_nan_in_the_logits_is_an_error_that_names_the_prompt() -> None:
    model = gpt2()
    model.transformer.wte.weight.data[9] = torch.nan  # the tied head: every row's logit of token 9
    with pytest.raises(dk.DecodingError, match="for prompt 0 some were NaN"):
        dk.decode(model, [[5], [6]], dk.Greedy(), max_new_tokens=2)
    with pytest.raises(dk.DecodingError, match="score: some logits of the model were NaN"):
        dk.score(model, [[5]], [[6, 9]])


class NamedAsOfOld(GPT2LMHeadModel):
    """As code that comes with weights still names its cache."""

    def forward(self, input_ids, past_key_values=None, **given):  # noqa: ANN001, ANN003, ANN201
        output = super().forward(input_ids, cache=past_key_values, **given)
        return ModelOutput(logits=output.logits, past_key_values=output.cache)


def test_a_cache_may_have_the_name_it_had_before_transformers_5_24() -> None:
    model, shapes = NamedAsOfOld(gpt2().config).eval(), []
    model.load_state_dict(gpt2().state_dict())
    hf = dk.HFModel(model)
    dk.decode(hf, [[5, 6]], dk.BeamSearch(3), max_new_tokens=1)  # asks the probe
    model.transformer.wte.register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0].shape)))
    out = dk.decode(hf, [[5, 6]], dk.BeamSearch(3), max_new_tokens=3)
    assert shapes == [(1, 2), (3, 1), (3, 1)]
    assert torch.equal(out.tokens, dk.decode(gpt2(), [[5, 6]], dk.BeamSearch(3), max_new_tokens=3).tokens)


def rwkv() -> RwkvForCausalLM:
    torch.manual_seed(0)
    config = RwkvConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, **IDS)
    return RwkvForCausalLM(config).eval()


def test_a_cache_that_cannot_be_reordered_is_refused_by_name() -> None:
    with pytest.raises(dk.ModelError, match="RwkvForCausalLM's cache cannot be reordered"):
        dk.decode(rwkv(), [[5, 6]], dk.BeamSearch(2), max_new_tokens=3)
    with pytest.raises(dk.ModelError, match="RwkvForCausalLM's cache cannot be reordered"):
        dk.decode(rwkv(), [[5, 6]], dk.Sample(2, seeds=[1]), max_new_tokens=3)
    ours = dk.decode(rwkv(), [[5, 6]], dk.Greedy(), max_new_tokens=5).sequences
    theirs = rwkv().generate(torch.tensor([[5, 6]]), max_new_tokens=5, do_sample=False)
    assert theirs.tolist() == ours.tolist()


def test_a_model_that_reads_padding_as_tokens_is_refused_for_padded_prompts() -> None:
    with pytest.raises(dk.ModelError, match="RwkvForCausalLM does not ignore left padding"):
        dk.decode(rwkv(), [[5, 6, 7], [8]], dk.Greedy(), max_new_tokens=3)
    with pytest.raises(dk.ModelError, match="RwkvForCausalLM does not ignore left padding"):
        dk.score(rwkv(), [[5, 6, 7], [8]], [[9], [9]])
    assert dk.decode(rwkv(), [[5, 6], [7, 8]], dk.Greedy(), max_new_tokens=3).valid.all()


def test_a_recurrent_model_takes_batches_and_beams() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=8, **IDS)
    model = MambaForCausalLM(config).eval()
    check_model(dk.HFModel(model), vocab=61, max_examples=3)
    tokens, mask = torch.tensor([[5, 6, 7], [3, 3, 8]]), torch.tensor([[1, 1, 1], [0, 0, 1]])
    theirs = model.generate(tokens, attention_mask=mask, max_new_tokens=5, num_beams=3, do_sample=False)
    ours = dk.decode(model, (tokens, mask), dk.BeamSearch(3), max_new_tokens=5)
    assert theirs.tolist() == ours.sequences.tolist()


def test_a_vocabulary_of_two_tokens_is_probed() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=2, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1)
        hf = dk.HFModel(GPT2LMHeadModel(config).eval())
        assert dk.decode(hf, [[0, 1], [0]], dk.BeamSearch(2), max_new_tokens=2).valid.all()


def test_a_model_of_very_few_positions_is_decoded_to_the_last_one() -> None:
    model = gpt2(n_positions=2)
    theirs = model.generate(torch.tensor([[5]]), max_new_tokens=2, num_beams=2, do_sample=False)
    assert theirs.tolist() == dk.decode(model, [[5]], dk.BeamSearch(2), max_new_tokens=2).sequences.tolist()


def test_a_model_without_a_cache_reads_the_sequence_again() -> None:
    torch.manual_seed(0)
    config = OpenAIGPTConfig(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=40, **IDS)
    model = OpenAIGPTLMHeadModel(config).eval()
    hf = dk.HFModel(model)
    assert "cache=none" in repr(hf)
    check_model(hf, vocab=61, max_examples=3)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    theirs = model.generate(ids, max_new_tokens=6, num_beams=3, do_sample=False)
    assert theirs.tolist() == dk.decode(hf, ids, dk.BeamSearch(3), max_new_tokens=6).sequences.tolist()


def test_an_encoder_is_refused_though_it_has_a_language_modelling_head() -> None:
    config = BertConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, **IDS
    )
    with pytest.raises(dk.ModelError, match="BertLMHeadModel must continue a text token by token"):
        dk.decode(BertLMHeadModel(config).eval(), [[5, 6]], dk.Greedy(), max_new_tokens=2)


def test_a_headless_model_is_refused() -> None:
    with pytest.raises(dk.ModelError, match=r"HFModel: .*GPT2Model"):
        dk.HFModel(GPT2Model(GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=4)))


def test_repr_names_model_device_and_cache() -> None:
    assert repr(dk.HFModel(gpt2())) == "HFModel(GPT2LMHeadModel, float32 on cpu, cache=auto)"


@pytest.mark.cuda
@pytest.mark.parametrize("decoder", [dk.Greedy(), dk.BeamSearch(4, num_return=4), dk.Sample(3, seeds=[1, 2])])
def test_cuda_gives_what_the_cpu_gives(decoder: dk.Decoder[Any]) -> None:
    batch, processors = [[5, 6, 7, 8], [9]], [dk.RepetitionPenalty(1.2), dk.NoRepeatNGram(2)]
    model = gpt2().double()
    cpu = dk.decode(model, batch, decoder, processors, max_new_tokens=12)
    cuda = dk.decode(model.cuda(), batch, decoder, processors, max_new_tokens=12)
    assert cpu.hypotheses() == cuda.hypotheses()
    torch.testing.assert_close(cpu.log_prob, cuda.log_prob.cpu(), atol=1e-4, rtol=1e-4)
