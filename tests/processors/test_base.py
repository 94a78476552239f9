from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessorList

import decodekit as dk
from decodekit.core.validation import read_ids
from decodekit.processors.base import ban, device_ids, put
from decodekit.testing import HashModel, check_captures, check_processor
from decodekit.testing.strategies import cases
from tests.processors.parity import LAWS, Call, calls

VOCAB = 9
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
    """Adds one, and records the histories it was given."""

    def __init__(self) -> None:
        self.seen: list[dk.History] = []

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        self.seen.append(history)
        return scores + 1


class AtMostOnce(dk.LogitsProcessor):
    """Bans the last token of the prompt and every new one; keeps them in its memory."""

    def init(self, history: dk.History) -> Tensor:
        return torch.zeros(len(history.tokens), VOCAB, dtype=torch.bool, device=history.tokens.device)

    def apply(self, history: dk.History, scores: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        last = history.tokens.index_select(1, (history.position - 1).view(1))
        memory = memory.scatter(1, last, True)
        return scores.masked_fill(memory, -torch.inf), memory


class Countdown(dk.LogitsProcessor):
    """Adds the number of the step to every score: its memory is one number for all rows."""

    def init(self, history: dk.History) -> Tensor:
        return torch.zeros_like(history.position)

    def apply(self, history: dk.History, scores: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        del history
        return scores + memory, memory + 1


class OnTheHost(dk.StatelessProcessor):
    """Reads the device, and is marked as not capturable."""

    capturable = False

    def process(self, history: dk.History, scores: Tensor) -> Tensor:
        return scores / 2 if history.position.item() > 0 else scores


POOL = [
    dk.Temperature(0.5),
    dk.TopK(4),
    dk.RepetitionPenalty(1.5),
    dk.NoRepeatNGram(2),
    dk.MinNewTokens(2, end_ids=0),
    AtMostOnce(),
    Countdown(),
]


def applied(processor: dk.LogitsProcessor, history: dk.History, scores: Tensor) -> tuple[Any, Any]:
    """Scores after two steps from the same history, and memory."""
    memory = processor.init(history)
    first, memory = processor.apply(history, scores, memory)
    second, memory = processor.apply(history, scores, memory)
    return first.tolist(), second.tolist()


@st.composite
def nested(draw: st.DrawFn, processors: Sequence[dk.LogitsProcessor]) -> dk.Chain:
    """The processors in order, in chains within chains, with empty ones between."""
    if len(processors) <= 1:
        empty = [dk.Chain()] if draw(st.booleans()) else []
        return dk.Chain(*empty, *processors)
    cut = draw(st.integers(1, len(processors) - 1))
    left, right = draw(nested(processors[:cut])), draw(nested(processors[cut:]))
    return draw(st.sampled_from([left | right, dk.Chain(left, dk.Chain(), right)]))


def test_called_by_hand_every_column_counts() -> None:
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
def test_ban_bans_on_all_rows_or_where_the_condition_holds(
    when: Tensor | None, expected: list[list[float]]
) -> None:
    scores = torch.arange(6.0).view(2, 3)
    assert ban("Who", scores, (0, 2), when).tolist() == expected
    assert scores.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_stateless_processor_has_no_memory_and_passes_its_argument_on() -> None:
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


def test_only_filters_that_keep_the_likeliest_token_are_argmax_invariant() -> None:
    keeps = [type(processor) for processor in STATELESS if processor.argmax_invariant]
    assert keeps == [dk.Temperature, dk.TopK, dk.TopP, dk.MinP]
    assert not dk.MinNewTokens(1, end_ids=0).argmax_invariant


def test_ban_puts_minus_infinity_at_the_ids_of_every_row() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert ban("Test", scores, (0, 2)).tolist() == [
        [-torch.inf, 2.0, -torch.inf],
        [-torch.inf, 5.0, -torch.inf],
    ]
    assert scores.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


def test_ban_names_the_processor_of_an_id_outside_the_vocabulary() -> None:
    with pytest.raises(ValueError, match=r"^Test: token ids must be below the vocabulary size 3, got 3"):
        ban("Test", torch.zeros(1, 3), (0, 3))


@pytest.mark.parametrize("token", [-1, 0.0, True, "0", b"0", None, torch.tensor(1.0)])
def test_read_ids_names_the_processor_of_a_value_that_is_no_id(token: Any) -> None:  # noqa: ANN401
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


def test_chain_applies_from_left_to_right() -> None:
    history = dk.Prompt.from_ids([[0]]).history(2, 1)
    scores = torch.tensor([[4.0, 2.0, 1.0]])
    # 4 : 2 : 1 above zero becomes 2 : 2 : 1, of which the tied ones stay; the other way round 4 stays.
    penalty_first, top_first = dk.RepetitionPenalty(2.0) | dk.TopK(1), dk.TopK(1) | dk.RepetitionPenalty(2.0)
    assert penalty_first.apply(history, scores, penalty_first.init(history))[0].tolist() == [
        [2.0, 2.0, -torch.inf]
    ]
    assert top_first.apply(history, scores, top_first.init(history))[0].tolist() == [
        [2.0, -torch.inf, -torch.inf]
    ]


def test_empty_chain_is_the_identity() -> None:
    history = dk.Prompt.from_ids([[0]]).history(2, 1)
    scores = torch.tensor([[4.0, -torch.inf, 1.0]])
    out, memory = dk.Chain().apply(history, scores, dk.Chain().init(history))
    assert scores.tolist() == out.tolist()
    assert memory == ()


def test_or_is_a_chain_of_both_in_order() -> None:
    first, second = dk.TopK(3), dk.TopP(0.5)
    assert (first | second).processors == (first, second)


def test_chain_reads_as_it_is_written() -> None:
    assert repr(dk.Chain(dk.TopK(3), dk.Chain())) == "Chain(TopK(k=3, min_tokens_to_keep=1), Chain())"


@pytest.mark.parametrize("other", [None, 3, "TopK", dk.TopK, [dk.TopK(3)], torch.nn.Identity()])
def test_chain_refuses_what_is_no_processor(other: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=r"^Chain: every processor must be a decodekit.LogitsProcessor, got"):
        dk.Chain(dk.TopK(3), other)


@pytest.mark.parametrize("other", [None, 3, "TopK", dk.TopK])
def test_or_refuses_what_is_no_processor_on_either_side(other: Any) -> None:  # noqa: ANN401
    with pytest.raises(TypeError, match=r"^Chain: every processor must be a decodekit.LogitsProcessor, got"):
        dk.TopK(3) | other
    with pytest.raises(TypeError, match="unsupported operand"):
        other | dk.TopK(3)


def test_chain_keeps_every_memory_apart() -> None:
    history = dk.Prompt.from_ids([[3], [4]]).history(3, 1)
    chain = dk.Chain(Countdown(), dk.TopK(9), AtMostOnce())
    memory = chain.init(history)
    for _ in range(3):
        _, memory = chain.apply(history, torch.zeros(2, VOCAB), memory)
    count, nothing, emitted = memory
    assert count.item() == 3
    assert nothing == ()
    assert torch.where(emitted)[1].tolist() == [3, 4]


@pytest.mark.parametrize(
    "chain",
    [
        dk.Chain(),
        dk.Chain(AtMostOnce()),
        dk.Chain(dk.Temperature(0.7), dk.Chain(AtMostOnce(), dk.TopP(0.8))),
        dk.MinNewTokens(2, end_ids=0) | Countdown() | dk.NoRepeatNGram(2),
    ],
)
def test_chain_keeps_the_contract_of_processors(chain: dk.Chain) -> None:
    check_processor(chain, vocab=VOCAB, max_examples=20)


@LAWS
@given(cases(VOCAB), st.lists(st.sampled_from(POOL), max_size=5), st.data())
def test_chain_is_its_processors_one_after_the_other_however_nested(
    case: tuple[dk.History, Tensor], processors: list[dk.LogitsProcessor], data: st.DataObject
) -> None:
    history, scores = case
    memories = [processor.init(history) for processor in processors]
    expected = []
    for _ in range(2):
        out = scores
        for number, processor in enumerate(processors):
            out, memories[number] = processor.apply(history, out, memories[number])
        expected.append(out.tolist())
    assert tuple(expected) == applied(dk.Chain(*processors), history, scores)
    assert tuple(expected) == applied(data.draw(nested(processors)), history, scores)


@pytest.mark.parametrize("beams", [1, 2, 5])
@pytest.mark.parametrize(
    "remembers",
    [AtMostOnce(), dk.Chain(AtMostOnce()), dk.Chain(dk.Chain(), dk.Chain(dk.Temperature(1), AtMostOnce()))],
)
def test_memory_follows_its_beam_through_chains(beams: int, remembers: dk.LogitsProcessor) -> None:
    # After prompts of one token the memory holds the whole sequence, so NoRepeatNGram(1) needs none.
    for seed in range(10):
        model, prompts = HashModel(VOCAB, seed, end_ids=(2,)), [[3], [5], [0]]
        decoder = dk.BeamSearch(beams, num_return=beams)
        expected = dk.decode(model, prompts, decoder, dk.NoRepeatNGram(1), max_new_tokens=6)
        out = dk.decode(model, prompts, decoder, remembers, max_new_tokens=6)
        assert expected.hypotheses() == out.hypotheses()
        assert expected.score.tolist() == out.score.tolist()


def test_chain_of_capturable_processors_captures() -> None:
    check_captures(dk.BeamSearch(2), dk.Chain(*POOL), vocab=VOCAB)


def test_chain_with_code_for_the_host_is_not_capturable() -> None:
    assert not dk.Chain(dk.TopK(3), OnTheHost()).capturable
    check_processor(dk.Chain(dk.TopK(3), OnTheHost()), max_examples=5)
