from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import decodekit as dk
from decodekit.core.history import Source
from decodekit.processors._shared.second_model import SecondModelState
from decodekit.testing import HashModel
from tests.processors.second import after, always, bare

HISTORY = dk.Prompt.from_ids([[1], [2, 3]]).history(6, 2)


class Noted:
    """Records the prompts that it is started on."""

    def __init__(self, vocabulary: dk.Vocabulary | None) -> None:
        self.started: list[dk.Prompt] = []
        if vocabulary is not None:
            self.vocabulary = vocabulary

    def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> Any:  # noqa: ANN401
        self.started.append(prompt)
        plain = dk.Prompt(prompt.tokens, prompt.mask)
        return HashModel(9).start(plain, rows_per_prompt=rows_per_prompt, capacity=capacity)


def test_a_second_model_reads_every_prompt_once_and_no_unwritten_columns() -> None:
    model = Noted(None)
    SecondModelState.start("Test", model, HISTORY)
    assert [prompt.ids() for prompt in model.started] == [[[1], [2, 3]]]


def test_one_prompt_serves_all() -> None:
    model = HashModel(9)
    one = dk.ClassifierFreeGuidance(model, 2.0, prompts=[[4, 5]])
    two = dk.ClassifierFreeGuidance(model, 2.0, prompts=[[4, 5], [4, 5]])
    texts = [
        dk.decode(HashModel(9, 1), [[1], [2, 3]], dk.BeamSearch(3), guided, max_new_tokens=4).hypotheses()
        for guided in (one, two)
    ]
    assert texts[0] == texts[1]


def test_prompts_may_be_strings() -> None:
    model = dk.load()
    words = dk.ContextAware(model, 1.0, "The king")
    ids = dk.ContextAware(model, 1.0, [model.vocabulary.ids("The king")])
    assert words.prompts.ids() == ids.prompts.ids()


def test_another_number_of_second_prompts_than_prompts_is_refused() -> None:
    guided = dk.ClassifierFreeGuidance(HashModel(9), 2.0, prompts=[[1], [2], [3]])
    with pytest.raises(
        dk.DecodekitError, match=r"^ClassifierFreeGuidance: there must be one prompt .* 3 for 2"
    ):
        guided.init(HISTORY)


def test_models_of_different_vocabularies_are_refused() -> None:
    with pytest.raises(dk.DecodekitError, match=r"^ShallowFusion: both models must .* got 8 tokens for 9"):
        dk.decode(HashModel(9), [[1]], dk.Greedy(), dk.ShallowFusion(HashModel(8), 1.0), max_new_tokens=2)
    with pytest.raises(dk.PromptError, match=r"ids must be in \[0, 3\), and prompt 0 has 7"):
        dk.decode(HashModel(9), [[7]], dk.Greedy(), dk.ShallowFusion(HashModel(3), 1.0), max_new_tokens=2)


def test_a_memory_of_a_second_model_cannot_be_used_twice() -> None:
    fusion, scores = dk.ShallowFusion(HashModel(9), 1.0), torch.zeros(4, 9)
    _, first = fusion.apply(HISTORY, scores, fusion.init(HISTORY))
    longer = HISTORY.append(torch.tensor([1, 2, 3, 4]))
    fusion.apply(longer, scores, first)
    with pytest.raises(dk.DecodekitError, match="must be the newest one, got one after 0 of 1 tokens"):
        fusion.apply(longer, scores, first)


def test_two_runs_of_one_processor_are_independent() -> None:
    fusion, scores = dk.ShallowFusion(HashModel(9), 1.0), torch.zeros(4, 9)
    longer = HISTORY.append(torch.tensor([1, 2, 3, 4]))
    out: list[list[Tensor]] = [[], []]
    memories = [fusion.init(HISTORY), fusion.init(HISTORY)]
    for history in (HISTORY, longer):
        for run in (0, 1):
            processed, memories[run] = fusion.apply(history, scores, memories[run])
            out[run].append(processed)
    assert torch.equal(torch.stack(out[0]), torch.stack(out[1]))


def test_a_language_model_reads_no_source_and_an_encoder_decoder_the_runs() -> None:
    source = Source(torch.tensor([[5, 6], [7, 0]]), torch.tensor([[True, True], [True, False]]))
    history = replace(HISTORY, source=source)
    language, translation, unknown = (
        Noted(vocabulary)
        for vocabulary in (dk.Vocabulary(size=9), dk.Vocabulary(size=9, decoder_start_id=1), None)
    )
    for model in (language, translation, unknown):
        SecondModelState.start("Test", model, history)
    assert language.started[0].source is None
    for model in (translation, unknown):
        assert [tensor.tolist() for tensor in source] == [
            tensor.tolist() for tensor in model.started[0].source or ()
        ]
    with pytest.raises(
        dk.DecodekitError, match=r"^Test: an encoder-decoder as second model reads the source"
    ):
        SecondModelState.start("Test", translation, HISTORY)


@pytest.mark.parametrize(
    "make", [lambda model: dk.ClassifierFreeGuidance(model, 2.0), lambda model: dk.PMI(model, 1.0, 1.0)]
)
def test_an_encoder_decoder_needs_prompts_as_a_source(make: Any) -> None:  # noqa: ANN401
    model = Noted(dk.Vocabulary(size=9, decoder_start_id=1))
    with pytest.raises(ValueError, match="an encoder-decoder needs prompts for its encoder, got none"):
        make(model)


def test_an_encoder_decoder_reads_prompts_of_its_own_as_sources() -> None:
    model = Noted(dk.Vocabulary(size=9, decoder_start_id=1))
    dk.ClassifierFreeGuidance(model, 2.0, prompts=[[5, 6]]).init(HISTORY)
    prompt = model.started[0]
    assert prompt.ids() == [[1], [1]]
    assert prompt.source is not None
    assert prompt.source.tokens.tolist() == [[5, 6], [5, 6]]


@pytest.mark.parametrize("wrong", [bare(), None, "gpt2", HashModel, 3])
def test_only_models_are_accepted_and_the_message_names_the_wrapper(wrong: Any) -> None:  # noqa: ANN401
    good = always(0.5, 0.5)
    for make in (
        lambda: dk.ClassifierFreeGuidance(wrong, 2.0),
        lambda: dk.ClassifierFreeGuidance(wrong, 2.0, prompts=[[1]]),
        lambda: dk.ContextAware(wrong, 1.0, [[1]]),
        lambda: dk.ContrastiveGuidance(wrong),
        lambda: dk.DExperts(wrong, good, 1.0),
        lambda: dk.DExperts(good, wrong, 1.0),
        lambda: dk.Ensemble([good, wrong]),
        lambda: dk.PMI(wrong, 1.0, 1.0),
        lambda: dk.ShallowFusion(wrong, 1.0),
    ):
        with pytest.raises(
            TypeError, match=r"must be a decodekit.Model, got .* use dk.HFModel\(model, tokenizer\)"
        ):
            make()


@pytest.mark.parametrize(
    "processor",
    [
        dk.ClassifierFreeGuidance(HashModel(3), 1),
        dk.ClassifierFreeGuidance(HashModel(3), 0),
        dk.ContextAware(HashModel(3), 1.0, [[1]]),
        dk.ContrastiveGuidance(HashModel(3)),
        dk.DExperts(HashModel(3), HashModel(3, 1), 1.0),
        dk.Ensemble(HashModel(3)),
        dk.Ensemble(HashModel(3), average="log_prob"),
        dk.PMI(HashModel(3), 1.0, 0.0),
        dk.ShallowFusion(HashModel(3), 1.0),
    ],
)
def test_a_row_of_banned_tokens_stays_banned(processor: dk.LogitsProcessor) -> None:
    assert after(processor, [0.0, 0.0, 0.0]).tolist() == [[-torch.inf] * 3]


def test_a_part_of_the_run_reads_the_second_prompts_of_its_prompts() -> None:
    model, whole = HashModel(9), dk.Prompt.from_ids([[1], [2], [3]]).history(4, 1)
    prompts = dk.Prompt.from_ids([[4], [5, 6], [7]])
    together = SecondModelState.start("Test", model, whole, prompts).logits
    alone = SecondModelState.start("Test", model, whole.part(torch.tensor([1])), prompts).logits
    assert together is not None
    assert alone is not None
    assert torch.equal(together[1:2], alone)
    part = SecondModelState.start("Test", model, whole.part(torch.tensor([2]))).logits
    assert part is not None
    assert torch.equal(model.start(dk.Prompt.from_ids([[3]]), rows_per_prompt=1, capacity=3)[1], part)
    with pytest.raises(dk.DecodekitError, match="got 2 for 3"):
        SecondModelState.start(
            "Test", model, whole.part(torch.tensor([1])), prompts.take(torch.tensor([0, 1]))
        )
