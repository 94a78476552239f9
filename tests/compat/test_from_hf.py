from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import decodekit as dk
from decodekit.compat.hf import FromHF
from decodekit.testing import HashModel, check_processor
from tests.equivalence.compare import batch, ours, theirs
from tests.equivalence.families import END, PAD, VOCAB, wrap


class EveryThird(transformers.StoppingCriteria):
    """Stops rows whose newest token is a multiple of three."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # noqa: ANN401, ARG002
        self.rows.append(len(input_ids))
        return input_ids[:, -1] % 3 == 0


def writes_to_its_argument(input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG001 - their signature
    scores[:, 0] = -torch.inf
    return scores


@pytest.mark.parametrize(
    "processor",
    [
        transformers.TopKLogitsWarper(3),
        transformers.TopPLogitsWarper(0.7),
        transformers.SuppressTokensLogitsProcessor([1, 4], device="cpu"),
        writes_to_its_argument,
    ],
    ids=["top-k", "top-p", "suppressed", "a function that writes"],
)
def test_a_stateless_processor_of_theirs_keeps_the_contract_of_ours(processor: Any) -> None:  # noqa: ANN401
    check_processor(FromHF(processor), max_examples=20)


def test_a_processor_of_theirs_gives_what_the_same_of_ours_gives_under_every_decoder() -> None:
    for decoder in (dk.Greedy(), dk.Sample(2, seeds=[1, 2, 3]), dk.BeamSearch(3, num_return=3)):
        mine = ours("gpt2", batch((0, 0, 0)), decoder, [dk.NoRepeatNGram(1), dk.TopK(5)])
        wrapped = [
            FromHF(transformers.NoRepeatNGramLogitsProcessor(1)),
            FromHF(transformers.TopKLogitsWarper(5)),
        ]
        assert mine.tokens.tolist() == ours("gpt2", batch((0, 0, 0)), decoder, wrapped).tokens.tolist()


def test_it_is_given_the_padding_that_generate_gives_it() -> None:
    prompts = batch((0, 4), seed=3, pad_id=9)
    options = {"do_sample": False, "pad_id": 9}
    expected = theirs(
        "gpt2", prompts, logits_processor=[transformers.NoRepeatNGramLogitsProcessor(1)], **options
    )
    out = ours("gpt2", prompts, dk.Greedy(), [FromHF(transformers.NoRepeatNGramLogitsProcessor(1))], pad_id=9)
    assert expected.tolist() == out.sequences.tolist()


@pytest.mark.parametrize("beams", [2, 4])
def test_one_that_keeps_rows_on_itself_is_refused_as_soon_as_beams_move(beams: int) -> None:
    marking = transformers.SynthIDTextWatermarkLogitsProcessor(
        ngram_len=3,
        keys=[1, 2, 3],
        sampling_table_size=64,
        sampling_table_seed=0,
        context_history_size=16,
        device=torch.device("cpu"),
    )
    model = HashModel(40, seed=1)
    dk.decode(model, [[5, 6], [7]], dk.Sample(2, seeds=[1, 2]), FromHF(marking), max_new_tokens=6)
    marking.state = None
    with pytest.raises(
        dk.DecodekitError, match=r"FromHF: SynthIDTextWatermark.* does not follow beams.*Use SynthID"
    ):
        dk.decode(model, [[5, 6], [7]], dk.BeamSearch(beams), FromHF(marking), max_new_tokens=12)


def test_a_criterion_of_theirs_finishes_hypotheses_and_gives_its_name() -> None:
    out = dk.decode(
        HashModel(9, seed=2), [[1, 2], [4]], dk.Greedy(), stop=FromHF(EveryThird()), max_new_tokens=30
    )
    for tokens, reason in zip(out.hypotheses(), out.finish_reason, strict=True):
        assert [token % 3 == 0 for token in tokens[0]] == [False] * (len(tokens[0]) - 1) + [True]
        assert reason == ["EveryThird"]


def test_under_beams_a_transformers_criterion_reads_hypotheses_and_not_candidates() -> None:
    criterion = EveryThird()
    dk.decode(HashModel(20), [[1], [2]], dk.BeamSearch(3), stop=FromHF(criterion), max_new_tokens=5)
    assert set(criterion.rows) == {6}


@pytest.mark.parametrize("num_return", [1, 3])
def test_a_criterion_under_beams_finds_what_generate_finds(num_return: int) -> None:
    for seed in range(5):
        prompts = batch((0, 3), seed=seed)
        expected = theirs(
            "llama",
            prompts,
            num_beams=3,
            num_return_sequences=num_return,
            do_sample=False,
            stopping_criteria=[EveryThird()],
            end_ids=(END,),
        )
        out = dk.decode(
            wrap("llama"),
            prompts,
            dk.BeamSearch(3, num_return=num_return),
            stop=FromHF(EveryThird()),
            max_new_tokens=12,
            end_ids=END,
            pad_id=PAD,
        )
        assert expected.tolist() == out.sequences.tolist()


def test_lists_of_theirs_become_a_chain_and_any_of() -> None:
    chain = FromHF(
        transformers.LogitsProcessorList(
            [transformers.TopKLogitsWarper(3), transformers.TemperatureLogitsWarper(0.5)]
        )
    )
    assert isinstance(chain, dk.Chain)
    assert repr(chain).startswith("Chain(FromHF(TopKLogitsWarper(top_k=3")
    either = FromHF(transformers.StoppingCriteriaList([EveryThird(), transformers.MaxTimeCriteria(9.0)]))
    assert isinstance(either, dk.AnyOf)


def test_a_part_of_ours_is_returned_as_it_is() -> None:
    for part in (dk.TopK(3), dk.MaxTime(3)):
        assert FromHF(part) is part


def needs_more(input_ids: Tensor, scores: Tensor, something: int) -> Tensor:  # noqa: ARG001
    return scores


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (3, "FromHF: part must be a processor or a criterion"),
        (transformers.TopKLogitsWarper, "FromHF: part must be a processor or a criterion"),
        (needs_more, "FromHF: .* must take input_ids and scores only, got the arguments .*something"),
        (
            transformers.generation.ConfidenceCriteria(0.4),
            "FromHF: ConfidenceCriteria reads the first row only",
        ),
    ],
)
def test_what_cannot_run_is_refused(part: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=message):
        FromHF(part)


def test_it_costs_no_read_of_the_vocabulary() -> None:
    assert FromHF(transformers.TopKLogitsWarper(2)).capturable is False
    scores = torch.zeros(1, VOCAB)
    history = dk.History(torch.tensor([[5]]), torch.tensor([[True]]), torch.tensor(1))
    processor = FromHF(transformers.TopKLogitsWarper(2))
    processed, _ = processor.apply(history, scores, processor.init(history))
    assert processed.shape == scores.shape
