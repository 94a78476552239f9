from typing import Any

import pytest
import torch
import transformers

import decodekit as dk
from decodekit.compat.hf import FromHF, from_generation_config
from decodekit.testing import HashModel


def config(**options: Any) -> Any:  # noqa: ANN401 - transformers' own
    return transformers.GenerationConfig(**options)


def chain_of(**options: Any) -> list[str]:  # noqa: ANN401 - of a GenerationConfig
    """The names of the processors, in order."""
    recipe = from_generation_config(config(**options), prompt_length=1, model=HashModel(50, end_ids=(2,)))
    return [type(processor).__name__ for processor in recipe.processor.processors]


def test_the_processors_stand_in_generates_order() -> None:
    assert chain_of(
        guidance_scale=1.5,
        sequence_bias=[[[9], 1.0]],
        encoder_repetition_penalty=1.1,
        repetition_penalty=1.2,
        no_repeat_ngram_size=2,
        encoder_no_repeat_ngram_size=2,
        bad_words_ids=[[8]],
        min_length=5,
        forced_bos_token_id=3,
        forced_eos_token_id=2,
        remove_invalid_values=True,
        exponential_decay_length_penalty=(2, 1.1),
        suppress_tokens=[4],
        begin_suppress_tokens=[5],
        do_sample=True,
        temperature=0.7,
        top_h=0.5,
        top_k=9,
        top_p=0.9,
        min_p=0.1,
        typical_p=0.8,
        epsilon_cutoff=0.01,
        eta_cutoff=0.02,
        watermarking_config=transformers.WatermarkingConfig(),
        renormalize_logits=True,
    ) == [
        *("ClassifierFreeGuidance", "SequenceBias", "EncoderRepetitionPenalty", "RepetitionPenalty"),
        *("NoRepeatNGram", "EncoderNoRepeatNGram", "BadWords", "MinNewTokens", "ForcedBOS", "ForcedEOS"),
        *("SanitizeScores", "ExponentialLengthDecay", "SuppressTokens", "SuppressTokensAtBegin"),
        *("Temperature", "TopH", "TopK", "TopP", "MinP", "Typical", "EpsilonCutoff", "EtaCutoff"),
        *("Watermark", "Renormalize"),
    ]


def test_what_asks_for_nothing_makes_nothing() -> None:
    assert chain_of() == []
    assert chain_of(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, typical_p=1.0, min_p=0.0) == []
    assert chain_of(repetition_penalty=1.0, no_repeat_ngram_size=0, epsilon_cutoff=0.0) == []


def test_sampling_without_a_word_is_from_the_50_likeliest() -> None:
    recipe = from_generation_config(config(do_sample=True))
    assert recipe.processor == dk.Chain(dk.TopK(50))
    assert recipe.decoder == dk.Sample(1)
    assert recipe.max_new_tokens == 20


def test_under_beams_truncations_keep_a_token_that_does_not_end() -> None:
    recipe = from_generation_config(config(do_sample=True, num_beams=3, top_k=1, eos_token_id=[2, 3]))
    assert recipe.processor == dk.Chain(dk.TopK(1, min_tokens_to_keep=3))
    assert recipe.decoder == dk.BeamSearch(3, expansion=dk.SampledExpansion())


@pytest.mark.parametrize(
    ("options", "decoder"),
    [
        ({}, dk.Greedy()),
        ({"do_sample": True, "num_return_sequences": 3}, dk.Sample(3)),
        ({"num_beams": 4, "num_return_sequences": 2}, dk.BeamSearch(4, num_return=2)),
        (
            {"num_beams": 2, "length_penalty": 0.5, "early_stopping": True},
            dk.BeamSearch(2, scorer=dk.LengthPenalty(0.5), stop_rule=dk.WhenFull()),
        ),
        ({"num_beams": 2, "early_stopping": "never"}, dk.BeamSearch(2, stop_rule=dk.Proved())),
    ],
)
def test_the_decoder_is_the_one_that_is_asked_for(options: dict[str, Any], decoder: dk.Decoder[Any]) -> None:
    assert from_generation_config(config(**options)).decoder == decoder


def test_a_processor_of_the_caller_takes_the_place_of_the_configurations_of_its_class() -> None:
    mine = transformers.SuppressTokensLogitsProcessor([7], device="cpu")
    other = transformers.TemperatureLogitsWarper(0.5)
    recipe = from_generation_config(
        config(suppress_tokens=[4], begin_suppress_tokens=[5], do_sample=True, top_k=3),
        logits_processor=[other, mine, dk.TopA(0.1)],
    )
    assert recipe.processor == dk.Chain(
        FromHF(mine), dk.SuppressTokensAtBegin([5]), FromHF(other), dk.TopA(0.1), dk.TopK(3)
    )


def test_criteria_of_the_caller_take_the_place_of_the_configurations() -> None:
    recipe = from_generation_config(
        config(max_new_tokens=9, max_time=5.0, eos_token_id=3),
        prompt_length=4,
        stopping_criteria=[
            transformers.MaxTimeCriteria(2.0),
            transformers.MaxLengthCriteria(10),
            transformers.EosTokenCriteria([6, 7]),
            dk.RepetitionLoop(3),
        ],
    )
    assert recipe.max_new_tokens == 6
    assert recipe.end_ids == (6, 7)
    assert [criterion.reason for criterion in recipe.stop] == ["MaxTimeCriteria", "loop"]


def test_it_prints_in_the_order_of_application() -> None:
    recipe = from_generation_config(
        config(num_beams=2, renormalize_logits=True, no_repeat_ngram_size=3, max_time=9)
    )
    lines = str(recipe).splitlines()
    assert lines[0].startswith("decoder         BeamSearch(beams=2")
    assert lines[1] == "processor 1     NoRepeatNGram(n=3)"
    assert lines[2] == "processor 2     Renormalize()"
    assert lines[3] == "stop            MaxTime(seconds=9)"
    assert "max_new_tokens  20" in lines


def test_its_arguments_are_decodes() -> None:
    recipe = from_generation_config(config(max_new_tokens=3, eos_token_id=2, pad_token_id=0))
    model = HashModel(9, end_ids=(5,))
    out = dk.decode(model, [[1, 2]], **recipe.arguments())
    assert (
        out.tokens.tolist()
        == dk.decode(model, [[1, 2]], dk.Greedy(), max_new_tokens=3, end_ids=2).tokens.tolist()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": 2.0}, "guidance_scale needs the model"),
        ({"min_new_tokens": 3}, "min_new_tokens needs end ids"),
        ({"max_length": 9}, "max_length counts the prompt"),
        ({"min_length": 9, "eos_token_id": 2}, "min_length counts the prompt"),
        ({"stop_strings": ["a"]}, "stop_strings need the model's tokenizer"),
        ({"num_beam_groups": 2}, "num_beam_groups is not supported, got 2"),
        ({"cache_implementation": "static"}, "cache_implementation is not supported, got 'static'"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    given = transformers.GenerationConfig()
    for name, value in options.items():  # as a file may hold it: transformers refuses some itself
        setattr(given, name, value)
    with pytest.raises(dk.DecodekitError, match=message):
        from_generation_config(given)


def test_end_ids_come_from_the_configuration_or_from_the_model() -> None:
    options = {"min_new_tokens": 3}
    model = HashModel(9, end_ids=(5,))
    assert from_generation_config(config(**options), model=model).processor == dk.Chain(
        dk.MinNewTokens(3, (5,))
    )
    mine = from_generation_config(config(**options, eos_token_id=torch.tensor([6, 7])), model=model)
    assert mine.processor == dk.Chain(dk.MinNewTokens(3, (6, 7)))
