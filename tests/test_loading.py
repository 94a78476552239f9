"""Models by name, and the bundled one."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import decodekit as dk

STORY = "Once upon a time there was a poor fisherman who lived by the sea."


@pytest.fixture(scope="module")
def model() -> dk.HFModel:
    return dk.load()


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


def test_it_is_small_enough_for_the_wheel() -> None:
    files = [path for path in dk.bundled_path().iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    assert 3e6 <= sum(parameter.numel() for parameter in dk.load().model.parameters()) <= 6e6


def test_its_card_states_the_loss_that_was_measured() -> None:
    measured = json.loads((dk.bundled_path() / "training.json").read_text())
    card = (dk.bundled_path() / "README.md").read_text()
    assert f"{measured['held_out_nats_per_token']:.2f} nats a token" in card


def test_its_tokenizer_gives_every_text_back(model: dk.HFModel) -> None:
    tokenizer = model.vocabulary.tokenizer
    assert tokenizer is not None
    for text in (STORY, "Ünïcödé ☃ 🙂 \t\n  two  spaces", "'Oh!' cried he; \"and why?\""):
        assert text == tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True)


def test_it_shows_what_decoding_does(model: dk.HFModel) -> None:
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
def test_a_model_that_is_not_there_is_an_error_that_says_so(name: str) -> None:
    with pytest.raises(dk.ModelError, match=f"load: '{name}' must be a language model"):
        dk.load(name)


def test_a_damaged_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=4, n_positions=40)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(dk.ModelError, match="load: "):
        dk.load(tmp_path)


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_a_device_that_is_not_there_is_an_error_that_says_so(device: str) -> None:
    with pytest.raises(
        dk.ModelError, match=f"load: device must be one that this machine has, got '{device}'"
    ):
        dk.load(device=device)
