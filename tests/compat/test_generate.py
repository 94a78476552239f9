import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import decodekit as dk
from decodekit.compat.hf import custom_generate, generate
from tests.equivalence.compare import batch
from tests.equivalence.families import ENDS, PAD, build, wrap
from tests.equivalence.outputs import differences

IDS: dict[str, Any] = {"eos_token_id": list(ENDS), "pad_token_id": PAD}
ENDLESS: dict[str, Any] = {"eos_token_id": None, "pad_token_id": PAD}
FULL: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}


def both(family: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Their generate and ours."""
    return build(family).generate, partial(generate, wrap(family))


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3, "num_return_sequences": 3}, {"num_beams": 2, "do_sample": True}]
)
def test_the_cache_that_is_returned_is_theirs(options: dict[str, Any]) -> None:
    prompts = batch((0, 0), seed=3)
    results = []
    for run in (build("gpt2").generate, lambda ids, **given: generate(wrap("gpt2"), ids, **given)):
        torch.manual_seed(1)
        results.append(
            run(prompts.tokens, max_new_tokens=6, attention_mask=prompts.mask, **ENDLESS, **FULL, **options)
        )
    theirs, ours = (result.cache for result in results)
    assert theirs.get_seq_length() == ours.get_seq_length() == 14
    for one, other in zip(theirs.layers, ours.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys)
        torch.testing.assert_close(one.values, other.values)


def test_a_conversation_goes_on_from_its_cache_and_the_cache_grows() -> None:
    first = batch((0, 0), seed=4)
    for model in ("gpt2", "llama", "gemma3-mixed"):
        results = []
        for run in (
            build(model).generate,
            lambda ids, model=model, **given: generate(wrap(model), ids, **given),
        ):
            mask = torch.ones_like(first.tokens)
            said = run(first.tokens, attention_mask=mask, max_new_tokens=5, **ENDLESS, **FULL)
            text = torch.cat([said.sequences, torch.full((2, 3), 9)], 1)
            past = said.cache
            options = {"cache": past, "attention_mask": torch.ones_like(text), "max_new_tokens": 5}
            after = run(text, **options, **ENDLESS, **FULL)
            assert past.get_seq_length() == after.sequences.shape[1] - 1
            results.append(after)
        assert differences(*results) == []


def test_what_is_in_the_cache_is_not_computed_again() -> None:
    prompts = batch((0,), seed=5)
    said = generate(wrap("gpt2"), prompts.tokens, max_new_tokens=4, **ENDLESS, **FULL)
    text = torch.cat([said.sequences, torch.tensor([[9]])], 1)
    seen: list[int] = []
    hook = build("gpt2").register_forward_pre_hook(
        lambda _, __, named: seen.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        generate(
            wrap("gpt2"),
            text,
            attention_mask=torch.ones_like(text),
            cache=said.cache,
            max_new_tokens=2,
            **ENDLESS,
        )
    finally:
        hook.remove()
    assert seen == [2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "a cache needs a decoder-only model and one sequence per prompt"),
        ({"max_new_tokens": 3}, "a cache must hold less than the whole prompt"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    prompts = batch((0,), seed=5)
    with torch.no_grad():
        past = build("gpt2")(prompts.tokens).cache
    with pytest.raises(dk.DecodekitError, match=message):
        generate(wrap("gpt2"), prompts.tokens, cache=past, **IDS, **options)


def test_the_callers_configuration_and_model_are_left_as_they_were() -> None:
    config = transformers.GenerationConfig(num_beams=2, max_new_tokens=3, **IDS)
    before, own = copy.deepcopy(config), build("gpt2").generation_config.to_dict()
    generate(build("gpt2"), batch((0,)).tokens, generation_config=config)
    assert config == before
    assert build("gpt2").generation_config.to_dict() == own


def test_a_bare_model_and_a_wrapped_one_are_the_same() -> None:
    prompts = batch((0, 2))
    options = {"attention_mask": prompts.mask, "max_new_tokens": 4, **IDS}
    assert torch.equal(
        generate(build("gpt2"), prompts.tokens, **options), generate(wrap("gpt2"), prompts.tokens, **options)
    )


@pytest.mark.filterwarnings("ignore")  # transformers warns that it guesses
def test_without_a_mask_pad_ids_are_padding_as_there() -> None:
    prompts = batch((0, 3))
    for given in (IDS, {"pad_token_id": ENDS[0], "eos_token_id": list(ENDS)}):
        expected = build("gpt2").generate(prompts.tokens, max_new_tokens=5, **given)
        assert torch.equal(expected, generate(wrap("gpt2"), prompts.tokens, max_new_tokens=5, **given))


def test_a_decoder_of_decodekit_runs_inside_generate() -> None:
    prompts = batch((0, 3), seed=6)
    for decoder in (dk.BeamSearch(3, num_return=2), dk.Sample(2, seeds=[4, 5]), dk.Greedy()):
        said = build("gpt2").generate(
            prompts.tokens,
            attention_mask=prompts.mask,
            max_new_tokens=6,
            repetition_penalty=1.4,
            custom_generate=custom_generate,
            decoder=decoder,
            **IDS,
        )
        out = dk.decode(
            wrap("gpt2"),
            prompts,
            decoder,
            dk.RepetitionPenalty(1.4),
            max_new_tokens=6,
            end_ids=ENDS,
            pad_id=PAD,
        )
        assert out.sequences.tolist() == said.tolist()


def test_guidance_and_synthid_inside_generate_follow_their_beams() -> None:
    prompts = batch((0, 0), seed=7)
    marked = transformers.SynthIDTextWatermarkingConfig(keys=[1, 5, 9], ngram_len=3)
    for options in ({"guidance_scale": 1.7}, {"watermarking_config": marked}):
        said = [
            run(prompts.tokens, max_new_tokens=6, num_beams=3, num_return_sequences=3, **IDS, **options)
            for run in (
                lambda ids, **given: build("gpt2").generate(ids, custom_generate=custom_generate, **given),
                lambda ids, **given: generate(wrap("gpt2"), ids, **given),
            )
        ]
        assert said[0].tolist() == said[1].tolist()


@pytest.mark.parametrize("family", ["t5", "bart", "marian"])
def test_inside_generate_an_encoder_runs_once_and_beams_share_what_it_read(family: str) -> None:
    prompts = batch((0, 0), seed=8)
    calls: list[list[list[int]]] = []
    hook = (
        build(family)
        .get_encoder()
        .register_forward_pre_hook(
            lambda _, __, named: calls.append(named["input_ids"].tolist()), with_kwargs=True
        )
    )
    try:
        expected = build(family).generate(prompts.tokens, num_beams=3, max_new_tokens=6, **IDS)
        calls.clear()
        said = build(family).generate(
            prompts.tokens, num_beams=3, max_new_tokens=6, custom_generate=custom_generate, **IDS
        )
    finally:
        hook.remove()
    assert expected.tolist() == said.tolist()
    assert calls.count(prompts.tokens.tolist()) == 1  # the others are questions to the model


class Listener(transformers.generation.BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.put_values: list[list[Any]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.put_values.append(value.tolist())

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "num_return_sequences": 2}])
def test_a_streamer_is_given_what_generate_gives_it(options: dict[str, Any]) -> None:
    prompts = batch((0, 2), seed=9)
    listeners = []
    for run in (build("gpt2").generate, lambda ids, **given: generate(wrap("gpt2"), ids, **given)):
        listeners.append(Listener())
        torch.manual_seed(2)
        run(
            prompts.tokens,
            attention_mask=prompts.mask,
            max_new_tokens=6,
            streamer=listeners[-1],
            **IDS,
            **options,
        )
    assert listeners[0].put_values == listeners[1].put_values
    assert listeners[1].ended == 1


def test_under_beams_a_streamer_is_given_what_is_settled_and_in_the_end_everything() -> None:
    listener, prompts = Listener(), batch((0,), seed=10)
    said = generate(wrap("gpt2"), prompts.tokens, num_beams=4, max_new_tokens=9, streamer=listener, **IDS)
    prompt, *tokens = listener.put_values
    assert prompt == prompts.tokens.tolist()
    assert [token for [token] in tokens] == said[0, 9:].tolist()
    with pytest.raises(dk.DecodekitError, match="a streamer under beam search takes one prompt, got 2"):
        generate(wrap("gpt2"), batch((0, 0)).tokens, num_beams=2, streamer=listener, **IDS)


def test_a_text_streamer_prints_under_beams(capsys: pytest.CaptureFixture[str]) -> None:
    bundled = dk.load()
    inputs = bundled.tokenizer("Once upon a time there was", return_tensors="pt")
    streamer = transformers.TextStreamer(bundled.tokenizer, skip_prompt=True)
    said = generate(bundled, **inputs, num_beams=3, max_new_tokens=12, streamer=streamer)
    text = bundled.tokenizer.decode(said[0, inputs["input_ids"].shape[1] :])
    assert capsys.readouterr().out.strip() == text.strip()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("gpt2", "model must be a transformers model, got 'gpt2'"),
        (torch.nn.Linear(2, 2), "must be a transformers model"),
    ],
)
def test_what_is_no_model_is_refused(model: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(dk.DecodekitError, match=message):
        generate(model, torch.tensor([[5]]))


def test_inputs_are_given_once_and_leave_room() -> None:
    with pytest.raises(dk.DecodekitError, match="inputs and input_ids mean the same"):
        generate(wrap("gpt2"), torch.tensor([[9]]), input_ids=torch.tensor([[9]]))
    with pytest.raises(dk.DecodekitError, match="leave no room for a new token"):
        generate(wrap("gpt2"), torch.tensor([[9, 9, 9]]), max_length=3)


def test_inside_generate_a_processor_of_the_source_is_given_it() -> None:
    tokens, options = batch((0,), seed=8).tokens, {"custom_generate": custom_generate, "max_new_tokens": 3}
    with pytest.raises(
        dk.DecodekitError, match=r"EncoderNoRepeatNGram.* needs the ids that the encoder has read"
    ):
        build("bart").generate(tokens, logits_processor=[dk.EncoderNoRepeatNGram(2)], **options, **IDS)
    chain = dk.Chain(dk.TopK(5), dk.EncoderRepetitionPenalty(1.2))
    with pytest.raises(dk.DecodekitError, match=r"EncoderRepetitionPenalty.* needs the ids that the encoder"):
        build("bart").generate(tokens, logits_processor=[chain], **options, **IDS)
    given = dk.EncoderNoRepeatNGram(1, source=tokens[0].tolist())
    said = build("bart").generate(tokens, logits_processor=[given], **options, **IDS)
    assert set(said[0, 1:].tolist()).isdisjoint(tokens[0].tolist())


def test_no_top_k_is_no_top_k_where_the_vocabulary_is_larger_than_its_default() -> None:
    bundled = dk.load()
    ids = bundled.tokenizer("Once upon a time", return_tensors="pt").input_ids
    for options in ({"top_k": None}, {"top_k": 0}, {}):
        said = []
        for run in (bundled.model.generate, partial(generate, bundled)):
            torch.manual_seed(5)
            said.append(run(ids, do_sample=True, max_new_tokens=20, temperature=1.5, **options).tolist())
        assert said[0] == said[1]


def test_a_cache_may_be_called_what_it_was_before_transformers_5_24() -> None:
    tokens = batch((0,), seed=5).tokens
    said = []
    for name in ("cache", "past_key_values"):
        past = transformers.DynamicCache()
        build("gpt2")(tokens[:, :4], cache=past, use_cache=True)
        said.append(generate(wrap("gpt2"), tokens, max_new_tokens=4, **ENDLESS, **{name: past}))
        assert past.get_seq_length() == tokens.shape[1] + 3
    assert torch.equal(*said)
    with pytest.raises(dk.DecodekitError, match="cache and past_key_values mean the same, got both"):
        generate(wrap("gpt2"), tokens, cache=past, past_key_values=past, max_new_tokens=4, **ENDLESS)


def test_half_a_prompt_after_a_cache_is_refused_inside_generate() -> None:
    tokens = batch((0,), seed=5).tokens
    past = transformers.DynamicCache()
    build("gpt2")(tokens[:, :1], cache=past, use_cache=True)
    with pytest.raises(dk.DecodekitError, match="with a cache, pass all ids of the prompts, got 8 of 9"):
        build("gpt2").generate(
            tokens[:, 1:],
            cache=past,
            attention_mask=torch.ones_like(tokens),
            custom_generate=custom_generate,
            max_new_tokens=3,
            **IDS,
        )


def test_ids_that_the_model_cannot_say_are_no_end_and_no_padding() -> None:
    prompts = batch((0, 0), seed=12)
    for ids in ({"eos_token_id": [7, 5000]}, {"eos_token_id": -1, "pad_token_id": PAD}):
        given = {"max_new_tokens": 6, "pad_token_id": PAD} | ids
        expected = build("gpt2").generate(prompts.tokens, **given)
        for run in (
            partial(generate, wrap("gpt2")),
            partial(build("gpt2").generate, custom_generate=custom_generate),
        ):
            assert torch.equal(expected, run(prompts.tokens, **given))


@pytest.mark.filterwarnings("ignore")  # transformers says which criterion it takes
def test_of_several_criteria_of_one_kind_all_hold() -> None:
    criteria = [transformers.MaxLengthCriteria(12), transformers.MaxLengthCriteria(14)]
    ends = [transformers.EosTokenCriteria(20), transformers.EosTokenCriteria(28)]
    for given in (criteria, criteria[::-1], ends, [*criteria, *ends]):
        expected, *ours = (
            run(batch((0, 0), seed=13).tokens, stopping_criteria=given, max_new_tokens=10, **IDS).tolist()
            for run in (*both("gpt2"), partial(build("gpt2").generate, custom_generate=custom_generate))
        )
        assert ours == [expected] * 2


class LooksAtScores(transformers.StoppingCriteria):
    """Stops at the third score."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ANN401
        return torch.full((len(input_ids),), len(scores) >= 3)


def test_a_criterion_that_looks_at_scores_is_told_that_they_are_not_kept() -> None:
    with pytest.raises(dk.DecodekitError, match="passes no scores to a criterion"):
        generate(wrap("gpt2"), batch((0,)).tokens, stopping_criteria=[LooksAtScores()], **IDS, **FULL)


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    prompts = batch((0, 0), seed=14)
    plain = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5, "eos_token_id": [2, 7]}
    odd = {
        "num_beams": np.int64(3),
        "num_return_sequences": torch.tensor(2),
        "max_new_tokens": np.int64(5),
        "eos_token_id": np.array([2, 7]),
    }
    expected = build("gpt2").generate(prompts.tokens, pad_token_id=PAD, **plain)
    assert torch.equal(expected, generate(wrap("gpt2"), prompts.tokens, pad_token_id=PAD, **odd))


def test_a_cache_of_the_callers_grows_inside_generate_too() -> None:
    past, tokens = transformers.DynamicCache(), batch((0,), seed=15).tokens
    build("gpt2").generate(tokens, cache=past, custom_generate=custom_generate, max_new_tokens=4, **ENDLESS)
    assert past.get_seq_length() == 12


def test_a_forced_first_token_is_for_decoders_that_start_with_one() -> None:
    prompts = batch((0, 8), seed=16)
    given = {"attention_mask": prompts.mask, "forced_bos_token_id": 14, "max_new_tokens": 5, **IDS}
    expected, ours = (run(prompts.tokens, begin_suppress_tokens=[14], **given) for run in both("gpt2"))
    assert torch.equal(expected, ours)
