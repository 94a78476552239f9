"""Loading of models, bundled or through transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
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
    assert f"{measured[loss]:.2f} nats a token" in card


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
