"""Encoder-decoders: sources read once, sources shared, and refusals."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    PLBartConfig,
    PLBartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import decodekit as dk
from decodekit.testing import check_model
from tests.equivalence.families import ENCODER_DECODERS, PAD, START, build, wrap

IDS = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD}
BEGIN = {**IDS, "decoder_start_token_id": START, "tie_word_embeddings": False}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 20,
}
SOURCES = [[8, 9, 10, 11, 12, 13], [14], [15, 16, 17]]
FEW = ("t5", "bart", "m2m100")


def scaled(model: Any, scale: float = 20) -> Any:  # noqa: ANN401 - a model, as it came
    """The model, with distributions that have favourites."""
    for weights in model.parameters():
        if weights.ndim > 1 and weights.requires_grad:
            weights.data.mul_(scale)
    return model.eval()


def t5(**options: Any) -> Any:  # noqa: ANN401
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return scaled(T5ForConditionalGeneration(T5Config(**{**BEGIN, **sizes, **options})), 2)


def bart(**options: Any) -> Any:  # noqa: ANN401
    torch.manual_seed(0)
    return scaled(BartForConditionalGeneration(BartConfig(**{**BEGIN, **BART, **options})))


@contextmanager
def calls(module: nn.Module) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the ids that a half of a model is given inside."""
    shapes: list[tuple[int, ...]] = []
    handle = module.register_forward_pre_hook(
        lambda _, __, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    yield shapes
    handle.remove()


@contextmanager
def cross_attention_keys(model: Any) -> Iterator[list[list[Tensor]]]:  # noqa: ANN401
    """Every layer's keys of the source after every forward pass inside."""
    seen: list[list[Tensor]] = []
    handle = model.register_forward_hook(
        lambda _, __, output: seen.append([layer.keys for layer in output.cache.cross_attention_cache.layers])
    )
    yield seen
    handle.remove()


@pytest.mark.mostly_slow(8)
# M2M100 counts positions by pad ids: one in the middle of a sequence shifts those of a fresh start.
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_advance_gives_what_a_fresh_start_gives_under_any_source_rows(family: str) -> None:
    vocab = PAD if family == "m2m100" else build(family).config.vocab_size
    check_model(wrap(family), vocab=vocab, max_examples=3)


def test_the_encoder_reads_each_prompt_once_before_the_decoder_is_widened() -> None:
    model = t5()
    hf = dk.HFModel(model)
    decoders: list[dk.Decoder[Any]] = [dk.BeamSearch(5), dk.Sample(5, seeds=[1, 2, 3]), dk.Greedy()]
    for decoder in decoders:
        dk.decode(hf, SOURCES, decoder, max_new_tokens=3)  # asks the probe, the first time
    with calls(model.get_encoder()) as read, calls(model.get_decoder()) as written:
        for decoder in decoders:
            dk.decode(hf, SOURCES, decoder, max_new_tokens=3, end_ids=())
    assert read == [(3, 6)] * 3
    assert written == [(3, 1), (3, 5), (3, 5)] * 2 + [(3, 1)] * 3


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_keys_of_a_source_are_stored_once_per_prompt_and_never_moved(family: str) -> None:
    hf = wrap(family)
    dk.decode(hf, SOURCES, dk.BeamSearch(4), max_new_tokens=1)
    assert "source=shared" in repr(hf)
    with cross_attention_keys(hf.model) as seen:
        out = dk.decode(hf, SOURCES, dk.BeamSearch(4, num_return=4), max_new_tokens=8, end_ids=())
    assert len(seen) == 8
    assert (out.parents[..., 1:] != out.parents[..., :-1]).any()  # rows were moved
    for keys in seen:
        assert [len(layer) for layer in keys] == [3, 3]
        assert [layer.data_ptr() for layer in keys] == [layer.data_ptr() for layer in seen[0]]


@pytest.mark.parametrize("family", FEW)
def test_the_source_is_repeated_once_if_attention_cannot_take_rows_as_queries(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = dk.decode(wrap(family), SOURCES, dk.BeamSearch(4, num_return=4), max_new_tokens=8)
    monkeypatch.setattr("decodekit.models.hf.forwards.encoder_decoder.cross_attentions", lambda _: [])
    hf = dk.HFModel(build(family), cache="rows")
    assert "source=untested" in repr(hf)
    repeated = dk.decode(hf, SOURCES, dk.BeamSearch(4, num_return=4), max_new_tokens=8)
    assert "source=repeated" in repr(hf)
    assert shared.hypotheses() == repeated.hypotheses()
    with cross_attention_keys(hf.model) as seen:
        dk.decode(hf, SOURCES, dk.BeamSearch(4), max_new_tokens=8, end_ids=())
    assert [len(keys[0]) for keys in seen] == [3] + [12] * 7
    assert len({keys[0].data_ptr() for keys in seen[1:]}) == 1


def test_the_model_is_left_as_it_was_also_after_an_error() -> None:
    model = bart(dropout=0.5, attention_dropout=0.5)
    hf = dk.HFModel(model)
    expected = dk.decode(hf, SOURCES, dk.BeamSearch(3), max_new_tokens=4).hypotheses()
    model.train()
    modes = [module.training for module in model.modules()]
    assert expected == dk.decode(hf, SOURCES, dk.BeamSearch(3), max_new_tokens=4).hypotheses()

    session, _ = hf.start(dk.Prompt.of(SOURCES, hf.vocabulary), rows_per_prompt=3, capacity=4)
    with pytest.raises(IndexError):
        session.advance(torch.full((9,), 1000), None)
    assert modes == [module.training for module in model.modules()]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert not any(tensor.is_inference() for tensor in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("family", FEW)
def test_a_source_padded_on_the_left_is_the_source_alone(family: str) -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 1, 0]])
    tokens = torch.tensor([[PAD, PAD, 8, 9], [10, 11, 12, 13], [14, 999, 15, -1]])
    padded = dk.decode(wrap(family), (tokens, mask), dk.BeamSearch(3), max_new_tokens=8)
    lists = [[8, 9], [10, 11, 12, 13], [14, 15]]
    for row, source in enumerate(lists):
        alone = dk.decode(wrap(family), [source], dk.BeamSearch(3), max_new_tokens=8)
        assert padded.hypotheses()[row] == alone.hypotheses()[0]
    assert (
        padded.hypotheses() == dk.decode(wrap(family), lists, dk.BeamSearch(3), max_new_tokens=8).hypotheses()
    )


@pytest.mark.parametrize("family", FEW)
def test_the_states_of_an_encoder_may_be_given(family: str) -> None:
    hf = wrap(family)
    prompt = dk.Prompt.of([[8, 9, 10], [11, 12, 13]], hf.vocabulary)
    assert prompt.source is not None
    with torch.no_grad():
        states = hf.model.get_encoder()(input_ids=prompt.source.tokens).last_hidden_state
    known = dk.Prompt(prompt.tokens, prompt.mask, prompt.source, states)
    expected = dk.decode(hf, prompt, dk.BeamSearch(3, num_return=3), max_new_tokens=6)
    with calls(hf.model.get_encoder()) as read:
        out = dk.decode(hf, known, dk.BeamSearch(3, num_return=3), max_new_tokens=6)
    assert expected.hypotheses() == out.hypotheses()
    assert read == []


# The pad id is suppressed for M2M100, as above.
@pytest.mark.parametrize("family", FEW)
def test_without_a_cache_the_tokens_are_the_same(family: str) -> None:
    expected, out = (
        dk.decode(model, SOURCES, dk.BeamSearch(3, num_return=3), dk.SuppressTokens([PAD]), max_new_tokens=6)
        for model in (wrap(family), dk.HFModel(build(family), cache="none"))
    )
    assert expected.hypotheses() == out.hypotheses()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [t5, bart])
def test_logits_are_float32_whatever_the_models_precision(make: Any, dtype: torch.dtype) -> None:  # noqa: ANN401
    hf = dk.HFModel(make().to(dtype))
    prompt = dk.Prompt.of(SOURCES, hf.vocabulary)
    session, logits = hf.start(prompt, rows_per_prompt=2, capacity=4)
    later = session.advance(torch.arange(5, 11), torch.tensor([1, 0, 2, 2, 5, 4]))
    for tensor in (logits, later):
        assert (tensor.dtype, tensor.shape, tensor.is_contiguous()) == (torch.float32, (6, 61), True)


# transformers 5.23 makes a cache of as many layers as the encoder has.
def test_a_decoder_may_have_more_layers_than_its_encoder() -> None:
    model = t5(num_decoder_layers=3).double()
    check_model(dk.HFModel(model), vocab=61, max_examples=3)
    with pytest.raises(IndexError):
        model.generate(torch.tensor(SOURCES[:1]), max_new_tokens=2)


def test_a_decoder_with_windows_and_fewer_heads_of_keys_is_decoded_as_generate_does() -> None:
    half = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "max_position_embeddings": 40,
        **IDS,
    }
    torch.manual_seed(0)
    config = T5GemmaConfig(encoder=half, decoder=half, **BEGIN)
    model = scaled(T5GemmaForConditionalGeneration(config))
    model.generation_config.decoder_start_token_id = START
    options = {"max_new_tokens": 10, "num_beams": 4, "num_return_sequences": 4, "do_sample": False}
    for source in SOURCES:
        expected = model.generate(torch.tensor([source]), eos_token_id=2, pad_token_id=PAD, **options)
        out = dk.decode(model, [source], dk.BeamSearch(4, num_return=4), max_new_tokens=10, pad_id=PAD)
        assert expected.tolist() == out.sequences.tolist()


def test_wrong_positions_of_little_effect_are_still_detected() -> None:
    torch.manual_seed(0)
    model = scaled(PLBartForConditionalGeneration(PLBartConfig(**{**BEGIN, **BART})))
    prompt = dk.Prompt.from_ids([[START], [START, 8]]).with_source(
        dk.Prompt.of(SOURCES[:2], dk.HFModel(model).vocabulary).source
    )
    with pytest.raises(dk.ModelError, match="PLBartForConditionalGeneration does not ignore left padding"):
        dk.decode(model, prompt, dk.Greedy(), max_new_tokens=2)


# With the ids of the published models, a probe's text must not hold the pad id, which M2M100 counts by.
def test_a_family_that_counts_positions_by_its_pad_id_is_probed_without_it() -> None:
    torch.manual_seed(0)
    config = M2M100Config(**{**BEGIN, **BART, "pad_token_id": 1, "bos_token_id": 0})
    model = scaled(M2M100ForConditionalGeneration(config))
    tokens = torch.tensor([SOURCES[0]])
    theirs = model.generate(tokens, max_new_tokens=8, num_beams=3, do_sample=False)
    assert theirs.tolist() == dk.decode(model, tokens, dk.BeamSearch(3), max_new_tokens=8).sequences.tolist()


def test_the_decoder_begins_with_bos_if_it_has_no_start_id() -> None:
    model = bart()
    model.generation_config.decoder_start_token_id = None
    assert dk.HFModel(model).vocabulary.decoder_start_id == 1
    assert (dk.decode(model, SOURCES, dk.Greedy(), max_new_tokens=2).sequences[:, 0] == 1).all()


@pytest.mark.parametrize("start", [None, [4, 5]])
def test_a_decoder_without_a_start_id_is_refused(start: Any) -> None:  # noqa: ANN401
    model = bart(bos_token_id=None)
    model.generation_config.decoder_start_token_id = start
    with pytest.raises(dk.ModelError, match="BartForConditionalGeneration's decoder must have one id"):
        dk.HFModel(model)


def test_an_encoder_that_does_not_read_text_is_refused_by_name() -> None:
    sizes = {**BART, "max_source_positions": 8, "max_target_positions": 8, "num_mel_bins": 4}
    model = WhisperForConditionalGeneration(WhisperConfig(**BEGIN, **sizes))
    with pytest.raises(dk.ModelError, match="WhisperForConditionalGeneration's reads input_features"):
        dk.HFModel(model)


def test_sequences_beyond_the_positions_of_encoder_or_decoder_are_refused() -> None:
    with pytest.raises(dk.ModelError, match=r"must fit the 20 positions of BartFor.*, got 21 tokens"):
        dk.decode(bart(), [[8] * 21], dk.Greedy(), max_new_tokens=1)
    with pytest.raises(dk.ModelError, match=r"must fit the 20 positions of .* 1 tokens and 21 new ones"):
        dk.decode(bart(), [[8]], dk.Greedy(), max_new_tokens=21)
    with pytest.raises(dk.ModelError, match="encoder reads must fit the 20 positions"):
        dk.score(bart(), [[8] * 21], [[9]])
    out = dk.decode(bart(), [[8] * 20], dk.Greedy(), max_new_tokens=20, end_ids=())
    assert out.lengths.tolist() == [[20]]


def test_an_encoder_that_reads_padding_is_refused_for_padded_sources() -> None:
    model = bart()
    model.get_encoder().register_forward_pre_hook(
        lambda _, args, named: (args, {**named, "attention_mask": None}), with_kwargs=True
    )
    hf = dk.HFModel(model)
    assert dk.decode(hf, [[8, 9], [10, 11]], dk.Greedy(), max_new_tokens=2).valid.all()
    with pytest.raises(dk.ModelError, match="BartForConditionalGeneration's encoder does not ignore padding"):
        dk.decode(hf, [[8, 9], [10]], dk.Greedy(), max_new_tokens=2)


def test_a_prompt_without_a_source_is_refused() -> None:
    with pytest.raises(dk.PromptError, match="needs a source"):
        dk.decode(bart(), dk.Prompt.from_ids([[START]]), dk.Greedy(), max_new_tokens=2)


def test_encoder_and_decoder_may_have_different_vocabularies() -> None:
    torch.manual_seed(0)
    config = MarianConfig(**{**BEGIN, **BART}, decoder_vocab_size=71, share_encoder_decoder_embeddings=False)
    model = scaled(MarianMTModel(config))
    assert dk.HFModel(model).vocabulary.size == 71
    scored = dk.score(model, [[60]], [[70]])
    assert scored.log_prob.isfinite().all()
    with pytest.raises(dk.PromptError, match="must be below the 61 ids that it knows, got 65"):
        dk.decode(model, [[65]], dk.Greedy(), max_new_tokens=1)


def words() -> PreTrainedTokenizerFast:
    known = ["<unk>", "<s>", "</s>", "<pad>", "<start>", "a", "longer", "one", "text", "short"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.mark.parametrize("make", [t5, bart])
def test_an_encoder_decoder_is_loaded_from_a_folder_with_its_tokenizer(make: Any, tmp_path: Path) -> None:  # noqa: ANN401
    model = make(vocab_size=10)
    model.save_pretrained(tmp_path)
    words().save_pretrained(tmp_path)
    loaded = dk.load(tmp_path, dtype=torch.float64)
    assert type(loaded.model) is type(model)
    assert loaded.model.dtype == torch.float64
    out = dk.decode(loaded, ["a text", "a longer one"], dk.BeamSearch(4), max_new_tokens=5)
    expected = dk.decode(loaded, [[5, 8], [5, 6, 7]], dk.BeamSearch(4), max_new_tokens=5)
    assert expected.hypotheses() == out.hypotheses()
    assert out.texts == expected.texts
    scored = dk.score(loaded, ["a text", "a longer one"], [["short text", "one"], ["text"]])
    by_ids = dk.score(loaded, [[5, 8], [5, 6, 7]], [[[9, 8], [7]], [[8]]])
    assert scored.log_prob.tolist() == by_ids.log_prob.tolist()
    assert scored.valid.tolist() == [[True, True], [True, False]]


def test_a_continuation_is_tokenized_as_the_decoders_text() -> None:
    class TwoTongues:
        """Reads words, and says letters."""

        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            return [8, 2] if add_special_tokens else [len(text)]

        def __call__(self, *, text_target: str, add_special_tokens: bool) -> dict[str, list[int]]:
            assert not add_special_tokens
            return {"input_ids": [ord(letter) % 61 for letter in text_target]}

        def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
            return " ".join(map(str, token_ids[skip_special_tokens:]))

    scored = dk.score(dk.HFModel(bart(), TwoTongues()), "word", ["abc"])
    assert scored.tokens.tolist() == [[[ord(letter) % 61 for letter in "abc"]]]


@pytest.mark.parametrize("family", FEW)
def test_scores_equal_those_of_step_by_step_decoding(family: str) -> None:
    class OnlyStarts:
        """The same model, without scoring in one pass."""

        def __init__(self) -> None:
            self.vocabulary = wrap(family).vocabulary

        def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> Any:  # noqa: ANN401
            return wrap(family).start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)

    continuations = [[[9, 10, 11], [12]], [[13, 2]], [[14, 15, 16, 17]]]
    one_pass = dk.score(wrap(family), SOURCES, continuations)
    steps = dk.score(OnlyStarts(), SOURCES, continuations)
    torch.testing.assert_close(one_pass.token_log_probs, steps.token_log_probs, atol=1e-5, rtol=1e-6)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "decoder", [dk.Greedy(), dk.BeamSearch(4, num_return=4), dk.Sample(3, seeds=[1, 2, 3])]
)
@pytest.mark.parametrize("make", [t5, bart])
def test_cuda_gives_what_the_cpu_gives(make: Any, decoder: dk.Decoder[Any]) -> None:  # noqa: ANN401
    model = make().double()
    cpu = dk.decode(model, SOURCES, decoder, dk.RepetitionPenalty(1.2), max_new_tokens=12)
    cuda = dk.decode(model.cuda(), SOURCES, decoder, dk.RepetitionPenalty(1.2), max_new_tokens=12)
    assert cpu.hypotheses() == cuda.hypotheses()
    torch.testing.assert_close(cpu.log_prob, cuda.log_prob.cpu(), atol=1e-4, rtol=1e-4)
