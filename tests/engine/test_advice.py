"""Errors name the next step, also for people who come from transformers."""

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import decodekit as dk
from decodekit.core.validation import shown
from decodekit.models.hf.model import HFModel

MODEL = dk.testing.MarkovModel([[0.2, 0.8], [0.5, 0.5]])
WARPER = transformers.TopKLogitsWarper(2)
CRITERION = transformers.MaxTimeCriteria(3.0)
CONFIG = transformers.GenerationConfig()
FROM_HF = "Wrap it in dk.compat.hf.FromHF and pass it as"
USE_CONFIG = "Use dk.compat.hf.from_generation_config(config) or dk.compat.hf.generate(...)."


def decode(*parts: Any, **options: Any) -> object:  # noqa: ANN401 - wrong arguments of all kinds
    return dk.decode(MODEL, [[0]], *parts, **{"max_new_tokens": 1, **options})


def message_of(kind: type[Exception], call: Callable[[], object]) -> str:
    with pytest.raises(kind) as error:
        call()
    return str(error.value)


def small_gpt2() -> transformers.GPT2Config:
    return transformers.GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9, n_positions=16)


def small_bert() -> transformers.BertConfig:
    return transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
    )


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (WARPER, f"{FROM_HF} processor."),
        (transformers.LogitsProcessorList([WARPER]), f"{FROM_HF} processor."),
        (CRITERION, f"{FROM_HF} stop=."),
        (transformers.StoppingCriteriaList([CRITERION]), f"{FROM_HF} stop=."),
        (CONFIG, USE_CONFIG),
    ],
)
def test_a_part_of_transformers_is_refused_in_every_place(given: object, advice: str) -> None:
    decoder = "decode: decoder must be a Decoder such as dk.Greedy() or dk.BeamSearch(5), got"
    assert message_of(TypeError, lambda: decode(given)) == f"{decoder} {shown(given)}. {advice}"
    processor = "decode: processor must be a LogitsProcessor or a sequence of them, got"
    for part in (given, [given], [dk.TopK(1), given]):
        message = message_of(TypeError, lambda part=part: decode(dk.Greedy(), part))  # type: ignore[misc]
        assert message == f"{processor} {shown(part)}. {advice}"
    stop = "decode: stop must be a StoppingCriterion, a string, or a sequence of them, got"
    for part in (given, [given], [dk.MaxTime(1.0), given]):
        message = message_of(TypeError, lambda part=part: decode(dk.Greedy(), stop=part))  # type: ignore[misc]
        assert message.startswith(stop)
        assert message.endswith(f". {advice}")


def function(ids: object, scores: object) -> object:
    """A function in the place of a processor."""
    return ids, scores


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({"temperature": 0.7}, "Pass objects such as dk.TopP(0.9), in a list if several."),
        (function, "Derive from dk.StatelessProcessor, or pass dk.compat.hf.FromHF(function)."),
        (dk.TopP, "Pass an object: TopP(...)."),
        (dk.Greedy(), "Greedy is a decoder. Pass it as decoder."),
        (dk.MaxTime(1.0), "MaxTime is a stopping criterion. Pass it as stop=."),
    ],
)
def test_another_object_as_processor_is_refused_with_the_right_one(given: object, advice: str) -> None:
    wanted = "decode: processor must be a LogitsProcessor or a sequence of them, got"
    assert message_of(TypeError, lambda: decode(dk.Greedy(), given)) == f"{wanted} {shown(given)}. {advice}"


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (dk.Greedy, "Pass an object: Greedy(...)."),
        (dk.TopP(0.9), "TopP is a processor. Pass it as processor."),
        ("greedy", "Pass an object such as dk.Greedy()."),
    ],
)
def test_another_object_as_decoder_is_refused_with_the_right_one(given: object, advice: str) -> None:
    wanted = "decode: decoder must be a Decoder such as dk.Greedy() or dk.BeamSearch(5), got"
    assert message_of(TypeError, lambda: decode(given)) == f"{wanted} {shown(given)}. {advice}"


def test_a_function_as_criterion_names_stop_when() -> None:
    message = message_of(TypeError, lambda: decode(dk.Greedy(), stop=function))
    wanted = "decode: stop must be a StoppingCriterion, a string, or a sequence of them, got"
    assert message == f"{wanted} {shown(function)}. Use dk.StopWhen(function)."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 5}, "decode: num_beams is not an option. Use the decoder BeamSearch(num_beams)."),
        ({"max_new_token": 5}, "decode: max_new_token is not an option. Did you mean max_new_tokens=?"),
        ({"do_sample": True}, "decode: do_sample is not an option. Use the decoder Sample()."),
        ({"temperature": 1.0}, "decode: temperature is not an option. Use the processor Temperature."),
        ({"top_kk": 5}, "decode: top_kk is not an option. Use the processor TopK."),
    ],
)
def test_an_unknown_option_names_the_right_one(options: dict[str, Any], message: str) -> None:
    assert message_of(TypeError, lambda: decode(dk.Greedy(), **options)) == message


def test_a_call_without_its_limit_names_it() -> None:
    message = message_of(TypeError, lambda: dk.decode(MODEL, [[0]], dk.Greedy()))  # type: ignore[call-arg]
    assert message == "decode: max_new_tokens must be given. Pass max_new_tokens=, an integer of at least 1."


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (dk.Sample, {"seed": 0}, "seed is not an option. Did you mean seeds=[...], one per prompt?"),
        (dk.BeamSearch, {"num_beams": 5}, "num_beams is not an option. Did you mean beams=?"),
        (dk.TopP, {"top_p": 0.9}, "top_p is not an option. Did you mean p=?"),
        (dk.Temperature, {"temp": 1}, "temp is not an option. Did you mean temperature=?"),
        (dk.XTC, {"xtc_threshold": 0.1}, "xtc_threshold is not an option. Did you mean threshold=?"),
        (dk.Greedy, {"beams": 1}, "beams is not an option. It has no options."),
        (dk.LengthPenalty, {"power": 1}, "power is not an option. It has alpha."),
        (dk.MaxTime, {"max_time": 1}, "max_time is not an option. Did you mean seconds=?"),
        (dk.Patience, {"factr": 1}, "factr is not an option. Did you mean factor=?"),
        (dk.Hamming, {"diversity_penalty": 1}, "diversity_penalty is not an option. Did you mean strength=?"),
        (dk.SampledExpansion, {"generatr": None}, "generatr is not an option. Did you mean generator=?"),
        (dk.PromptLookup, {"max_ngrams": 1}, "max_ngrams is not an option. Did you mean max_ngram=?"),
        (dk.BLEU, {"max_orders": 1}, "max_orders is not an option. Did you mean max_order=?"),
        (dk.Phrase, {"id": 1}, "id is not an option. Did you mean ids=?"),
        (dk.HFModel, {"caches": "trie"}, "caches is not an option. Did you mean cache=?"),
        (dk.load, {"devise": "cpu"}, "devise is not an option. Did you mean device=?"),
        (dk.score, {"batchsize": 1}, "batchsize is not an option. Did you mean batch_size=?"),
    ],
)  # fmt: skip
def test_an_unknown_keyword_names_the_right_one(
    make: Callable[..., object], options: dict[str, Any], message: str
) -> None:
    assert message_of(TypeError, lambda: make(**options)) == f"{make.__name__}: {message}"


def test_objects_can_still_be_copied_and_pickled_and_have_their_signatures() -> None:
    for part in (dk.Sample(2, seeds=[1]), dk.TopP(p=0.5), dk.Chain(dk.TopP(0.5), dk.TopK(3)), dk.LogProb()):
        assert repr(pickle.loads(pickle.dumps(part))) == repr(copy.deepcopy(part)) == repr(part)  # noqa: S301
    assert [*inspect.signature(dk.TopP).parameters] == ["p", "min_tokens_to_keep"]


def test_a_class_of_a_user_takes_its_own_arguments() -> None:
    class Bare(dk.StatelessProcessor):
        def process(self, history: dk.History, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
            return scores

    class Shifted(Bare):
        def __init__(self, shift: int, **others: int) -> None:
            self.shift, self.others = shift, others

    assert vars(Shifted(shift=2, other=3)) == {"shift": 2, "others": {"other": 3}}
    message = message_of(TypeError, lambda: Bare(3))  # type: ignore[call-arg]
    assert message == "Bare: there must be no arguments, got 1."


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("BeamSerch", "Did you mean BeamSearch?"),
        ("beam_search", "Did you mean BeamSearch?"),
        ("TopKLogitsWarper", "Did you mean TopK?"),
        ("ForcedBOSTokenLogitsProcessor", "Did you mean ForcedBOS?"),
        ("LogitsProcessorList", "Use Chain, or a list."),
        ("GenerationConfig", "Use dk.compat.hf.from_generation_config(config)."),
        ("generate", "Use dk.decode, or dk.compat.hf.generate with the arguments of transformers."),
        ("qqqq", "dir(decodekit) lists its names."),
    ],
)
def test_a_misspelt_name_is_refused_with_the_right_one(name: str, advice: str) -> None:
    message = message_of(AttributeError, lambda: getattr(dk, name))
    assert message == f"module 'decodekit' has no attribute {name!r}. {advice}"


def test_the_import_of_a_misspelt_name_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="cannot import name 'BeamSerch' from 'decodekit'"):
        from decodekit import BeamSerch  # type: ignore[attr-defined]  # noqa: F401, PLC0415


HEAD = "Load it with AutoModelForCausalLM or AutoModelForSeq2SeqLM."


def test_a_model_without_a_head_is_refused_with_the_reason() -> None:
    wanted = "HFModel: model must have a language-modelling head, got"
    model = transformers.GPT2Model(small_gpt2())
    assert message_of(dk.ModelError, lambda: HFModel(model)) == f"{wanted} GPT2Model. {HEAD}"
    classifier = transformers.BertForSequenceClassification(small_bert())
    message = message_of(dk.ModelError, lambda: dk.decode(classifier, [[0]], dk.Greedy(), max_new_tokens=1))
    assert message == f"{wanted} BertForSequenceClassification. {HEAD}"


def test_a_masked_language_model_is_refused_with_the_reason() -> None:
    model = transformers.BertForMaskedLM(small_bert())
    assert message_of(dk.ModelError, lambda: HFModel(model)) == (
        "HFModel: model must continue text, got BertForMaskedLM, which fills gaps in a text. "
        "Load a model with AutoModelForCausalLM or AutoModelForSeq2SeqLM."
    )


def test_a_model_without_weights_is_refused_with_the_reason() -> None:
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(small_gpt2())
    assert message_of(dk.ModelError, lambda: HFModel(model)) == (
        "HFModel: model must have weights, got GPT2LMHeadModel on the meta device, which has no weights. "
        "Load them with from_pretrained or dk.load(name)."
    )


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("gpt2", "Use dk.load('gpt2')."),
        (dk.bundled_path(), f"Use dk.load({str(dk.bundled_path())!r})."),
        (small_gpt2(), "A configuration has no weights. Use dk.load(name), or AutoModelForCausalLM."),
        (
            transformers.AutoTokenizer.from_pretrained(dk.bundled_path()),
            "A tokenizer is the second argument. Use dk.HFModel(model, tokenizer).",
        ),
        (transformers.GPT2LMHeadModel, "Pass an object: GPT2LMHeadModel(...)."),
    ],
    ids=["name", "path", "config", "tokenizer", "class"],
)
def test_another_object_as_model_is_refused_with_the_right_one(given: Any, advice: str) -> None:  # noqa: ANN401
    message = message_of(dk.ModelError, lambda: HFModel(given))
    assert message == f"HFModel: model must be a transformers model, got {shown(given)}. {advice}"
    message = message_of(dk.DecodekitError, lambda: dk.decode(given, [[0]], dk.Greedy(), max_new_tokens=1))
    assert message == f"decode: model must be a Model or a transformers model, got {shown(given)}. {advice}"


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (function, "Use dk.ScoreFunction(function, upper)."),
        (0.6, "Use dk.LengthPenalty(0.6)."),
        (dk.LengthPenalty, "Pass an object: LengthPenalty(...)."),
    ],
)
def test_another_object_as_scorer_is_refused_with_the_right_one(given: Any, advice: str) -> None:  # noqa: ANN401
    wanted = "must be a Scorer or PathScorer such as LengthPenalty(1.0), got"
    for make in (lambda: dk.BeamSearch(5, scorer=given), lambda: dk.DepthFirst(scorer=given)):
        message = message_of(TypeError, make).split(": ", maxsplit=1)[1]
        assert message == f"scorer {wanted} {shown(given)}. {advice}"


class Wrong(dk.RowDecoder):
    rows_per_prompt = 1

    def __init__(self, chosen: Any) -> None:  # noqa: ANN401
        self.chosen = chosen

    def choose(self, scores: torch.Tensor, state: dk.RowState) -> torch.Tensor:  # noqa: ARG002
        return self.chosen  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        (torch.zeros(1), "torch.float32 of shape (1,)"),
        (torch.zeros(1, 1, dtype=torch.long), "torch.int64 of shape (1, 1)"),
        ([0], "[0]"),
        (None, "None"),
    ],
)
def test_a_choice_of_something_else_than_tokens_is_refused(chosen: object, found: str) -> None:
    message = message_of(dk.DecodekitError, lambda: decode(Wrong(chosen)))
    assert message == f"decode: Wrong.choose must return one int64 token per row (1 rows), got {found}."


class WrongStep(dk.Decoder[dk.RowState]):
    rows_per_prompt = 1

    def __init__(self, result: Any) -> None:  # noqa: ANN401
        self.result = result

    def init(self, history: dk.History, limits: dk.Limits) -> dk.RowState:
        return dk.RowState.start(history, limits)

    def step(self, scores: torch.Tensor, state: dk.RowState) -> tuple[dk.RowState, dk.Selection]:  # noqa: ARG002
        return self.result(state)  # type: ignore[no-any-return]

    def finalize(self, state: dk.RowState) -> dk.Decoded[None]:
        return state.decoded(hypotheses=1)


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (lambda _: None, "None"),
        (lambda state: (state, torch.zeros(2)), "a tuple of RowState and Tensor"),
        (
            lambda state: (state, dk.Selection(torch.zeros(2, dtype=torch.long))),
            "a selection of torch.int64 tokens of shape (2,)",
        ),
    ],
)
def test_a_step_that_returns_something_else_is_refused(result: object, found: str) -> None:
    message = message_of(dk.DecodekitError, lambda: decode(WrongStep(result)))
    assert message == (
        "decode: WrongStep.step must return its new state and a Selection of one int64 token per row "
        f"(1 rows), got {found}. In a RowDecoder only choose() is needed."
    )


def test_continuations_of_one_prompt_need_no_second_list() -> None:
    model = dk.load()
    once = dk.score(model, "Once upon a", [" time", " castle"])
    assert torch.equal(once.log_prob, dk.score(model, "Once upon a", [[" time", " castle"]]).log_prob)


def test_integers_of_numpy_are_ids() -> None:
    several = [np.int64(0), np.int64(1)]
    given = dk.decode(MODEL, [several], dk.Greedy(), end_ids=np.int64(1), max_new_tokens=2).tokens
    assert torch.equal(given, dk.decode(MODEL, [[0, 1]], dk.Greedy(), end_ids=1, max_new_tokens=2).tokens)
