from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessorList

import decodekit as dk
from decodekit.core.validation import read_ids
from decodekit.processors.base import ban, device_ids, put, seen_tokens
from decodekit.testing.strategies import cases
from tests.processors.parity import LAWS, Call, calls

FEW = settings(LAWS, max_examples=30)  # of every processor
STATELESS = [
    dk.Temperature(0.7),
    dk.TopK(3),
    dk.TopP(0.8),
    dk.MinP(0.2),
    dk.RepetitionPenalty(1.5),
    dk.NoRepeatNGram(2),
    dk.SuppressTokens([1]),
]


class OnlyProcess(dk.StatelessProcessor):
    """Adds one, and keeps what it was given to look at."""

    def __init__(self) -> None:
        self.seen: list[dk.History] = []

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        self.seen.append(history)
        return scores + 1


def test_called_by_hand_every_column_counts_as_text() -> None:
    processor, tokens = OnlyProcess(), torch.tensor([[4, 5, 6], [7, 8, 9]])
    assert processor(tokens, torch.zeros(2, 3)).tolist() == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    [history] = processor.seen
    assert tokens.tolist() == history.tokens.tolist()
    assert history.valid.tolist() == [[True, True, True], [True, True, True]]
    assert history.position.item() == 3
    assert history.position.ndim == 0


def test_put_changes_the_ids_that_count_and_leaves_the_arguments() -> None:
    scores, ids = torch.arange(8.0).view(2, 4), torch.tensor([[1, 3, 1, 9], [0, 0, 2, 4]])
    where = torch.tensor([[True, False, True, True], [False, True, True, True]])
    values = torch.tensor([[-1.0, -2.0, -1.0, -3.0], [-4.0, -5.0, -6.0, -7.0]])
    # Ids 9 and 4 are outside the vocabulary; id 0 counts in one of its columns.
    out = put(scores, ids, where, values)
    assert out.tolist() == [[0, -1, 2, 3], [-5, 5, -6, 7]]
    assert out.is_contiguous()
    assert put(scores, ids, where, 9.0).tolist() == [[0, 9, 2, 3], [9, 5, 9, 7]]
    assert scores.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (None, [[-torch.inf, 1, -torch.inf], [-torch.inf, 4, -torch.inf]]),
        (torch.tensor(True), [[-torch.inf, 1, -torch.inf], [-torch.inf, 4, -torch.inf]]),
        (torch.tensor(False), [[0, 1, 2], [3, 4, 5]]),
        (torch.tensor([[False], [True]]), [[0, 1, 2], [-torch.inf, 4, -torch.inf]]),
    ],
)
def test_ban_bans_all_rows_or_those_where_it_is_time(
    when: Tensor | None, expected: list[list[float]]
) -> None:
    scores = torch.arange(6.0).view(2, 3)
    assert ban("Who", scores, (0, 2), when).tolist() == expected
    assert scores.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_stateless_processor_remembers_nothing_and_passes_on_what_it_is_given() -> None:
    processor, history = OnlyProcess(), dk.Prompt.from_ids([[0]]).history(2, 1)
    assert processor.init(history) == ()
    assert processor.apply(history, torch.zeros(1, 2), ())[1] == ()


@pytest.mark.parametrize(
    ("methods", "missing"), [((), "apply"), (("init",), "apply"), (("apply",), "init")], ids=str
)
def test_a_processor_needs_init_and_apply(methods: tuple[str, ...], missing: str) -> None:
    incomplete = type("Incomplete", (dk.LogitsProcessor,), dict.fromkeys(methods, lambda *_: None))
    with pytest.raises(TypeError, match=missing):
        incomplete()


def test_a_stateless_processor_needs_process() -> None:
    with pytest.raises(TypeError, match="process"):
        type("Incomplete", (dk.StatelessProcessor,), {})()


def test_only_the_filters_that_keep_the_likeliest_say_so() -> None:
    keeps = [type(processor) for processor in STATELESS if processor.argmax_invariant]
    assert keeps == [dk.Temperature, dk.TopK, dk.TopP, dk.MinP]
    assert not dk.MinNewTokens(1, end_ids=0).argmax_invariant


def test_seen_tokens_are_those_at_the_chosen_columns() -> None:
    tokens = torch.tensor([[2, 0, 2], [1, 1, 9]])
    where = torch.tensor([[True, False, True], [False, True, True]])
    assert seen_tokens(tokens, where, 3).tolist() == [[False, False, True], [False, True, False]]


def test_seen_tokens_may_stand_anywhere_in_the_junk() -> None:
    tokens = torch.tensor([[1, -100, 2**40]])
    where = torch.tensor([[True, False, False]])
    assert seen_tokens(tokens, where, 2).tolist() == [[False, True]]


def test_ban_puts_minus_infinity_at_the_ids_of_every_row() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert ban("Test", scores, (0, 2)).tolist() == [
        [-torch.inf, 2.0, -torch.inf],
        [-torch.inf, 5.0, -torch.inf],
    ]
    assert scores.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


def test_ban_names_who_has_an_id_outside_the_vocabulary() -> None:
    with pytest.raises(ValueError, match=r"^Test: token ids must be below the vocabulary size 3, got 3"):
        ban("Test", torch.zeros(1, 3), (0, 3))


@pytest.mark.parametrize("token", [-1, 0.0, True, "0", b"0", None, torch.tensor(1.0)])
def test_read_ids_names_who_has_what_is_no_id(token: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^Test: token ids must be integers of at least 0, got"):
        read_ids("Test", (0, token))


def test_device_ids_are_copied_to_the_device_once() -> None:
    first, again = (device_ids((3, 1, 4), torch.device("cpu")) for _ in range(2))
    assert first.tolist() == [3, 1, 4]
    assert first is again


@pytest.mark.parametrize("processor", STATELESS)
@FEW
@given(call=calls())
def test_hugging_faces_list_calls_a_stateless_processor_as_it_is(
    processor: dk.StatelessProcessor, call: Call
) -> None:
    tokens, scores = call
    expected = processor(tokens, scores)
    assert expected.tolist() == LogitsProcessorList([processor])(tokens, scores).tolist()


@pytest.mark.parametrize("processor", STATELESS)
@FEW
@given(case=st.integers(2, 9).flatmap(lambda vocab: cases(vocab, padded=False)))
def test_a_call_by_hand_is_the_process_of_a_run_without_padding(
    processor: dk.StatelessProcessor, case: tuple[dk.History, Tensor]
) -> None:
    history, scores = case
    by_hand = processor(history.tokens[:, : int(history.position)], scores)
    assert by_hand.tolist() == processor.process(history, scores).tolist()


def test_generate_runs_a_stateless_processor_as_its_own() -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=11, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    model = GPT2LMHeadModel(config).eval()
    prompt = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 3}
    expected = model.generate(**prompt, **options, no_repeat_ngram_size=2, suppress_tokens=[4, 9])
    ours = model.generate(
        **prompt, **options, logits_processor=[dk.NoRepeatNGram(2), dk.SuppressTokens([4, 9])]
    )
    assert expected.tolist() == ours.tolist()
    assert expected.tolist() != model.generate(**prompt, **options).tolist()


def test_constants_made_in_inference_mode_serve_where_gradients_are_taken() -> None:
    ids = torch.tensor([[1, 2]])
    for processor in (
        dk.SuppressTokens([3, 7]),
        dk.Temperature([0.31, 0.32]),
        dk.SequenceBias([[[3], 1.5], [[1, 4], 0.5]]),
    ):
        rows = ids.expand(2, -1)
        with torch.inference_mode():
            processor(rows, torch.randn(2, 9))
        scores = torch.randn(2, 9, requires_grad=True)
        processor(rows, scores).nan_to_num(neginf=0).sum().backward()
        assert scores.grad is not None
