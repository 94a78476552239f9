import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import SequenceBiasLogitsProcessor

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.parity import LAWS, Call, assert_same, calls, history_of

BANNED = -torch.inf
BIASES = st.floats(-10, 10, width=32) | st.just(BANNED) | st.sampled_from([0.1, 0.2, 0.3])


def biased(biases: Any, text: list[int], scores: torch.Tensor) -> list[float]:  # noqa: ANN401
    row: list[float] = dk.SequenceBias(biases)(torch.tensor([text]), scores)[0].tolist()
    return row


def test_sequence_bias_adds_to_the_last_token_where_the_tokens_so_far_end_in_the_rest() -> None:
    biases = {(1, 2): 1.0, (0, 1, 3): 2.0, (1, 1, 0): 4.0}
    assert biased(biases, [0, 1], torch.zeros(1, 4)) == [0.0, 0.0, 1.0, 2.0]
    assert biased(biases, [1, 1], torch.zeros(1, 4)) == [4.0, 0.0, 1.0, 0.0]
    assert biased(biases, [1, 0], torch.zeros(1, 4)) == [0.0, 0.0, 0.0, 0.0]


def test_sequence_bias_of_one_token_always_counts() -> None:
    assert biased({(2,): 1.5, (0,): BANNED}, [1], torch.ones(1, 3)) == [BANNED, 1.0, 2.5]


def test_sequence_biases_that_end_in_the_same_token_add_up() -> None:
    assert biased({(2,): 1.0, (1, 2): 2.0, (0, 1, 2): 4.0}, [0, 1], torch.zeros(1, 3)) == [0.0, 0.0, 7.0]


@pytest.mark.parametrize("ids", list(itertools.permutations([(2,), (1, 2), (0, 1, 2)])))
@pytest.mark.parametrize("values", list(itertools.permutations([1e8, -1e8, 1.0])))
def test_sequence_biases_add_up_in_hugging_faces_order(
    ids: tuple[tuple[int, ...], ...], values: tuple[float, ...]
) -> None:
    # In float32 the sum is 0 or 1, as the 1 is added before or after the others cancel.
    biases = dict(zip(ids, values, strict=True))
    call = torch.tensor([[0, 1]]), torch.zeros(1, 3)
    assert_same(SequenceBiasLogitsProcessor(biases), dk.SequenceBias(biases), call)


def test_sequence_bias_ignores_sequences_longer_than_the_history() -> None:
    assert biased({(0, 0, 0, 1): 1.0}, [0, 0], torch.zeros(1, 2)) == [0.0, 0.0]
    assert biased({(0, 0, 1): 1.0}, [0], torch.zeros(1, 2)) == [0.0, 0.0]


def test_sequence_bias_does_not_count_padding() -> None:
    # Padding has the id 0.
    out = dk.SequenceBias({(0, 1, 2): 1.0}).process(history_of([[0, 1], [1]]), torch.zeros(2, 3))
    assert out.tolist() == [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_sequence_bias_takes_pairs_of_which_the_last_of_equal_sequences_counts() -> None:
    pairs = [([1, 2], 1.0), (torch.tensor([0]), 3), ([1, 2], 5.0)]
    assert biased(pairs, [1], torch.zeros(1, 3)) == [3.0, 0.0, 5.0]


def test_sequence_biases_are_equal_where_their_biases_are() -> None:
    assert dk.SequenceBias({(1,): 2.0}) == dk.SequenceBias([([1], 2.0)])
    assert dk.SequenceBias({(1,): 2.0}) != dk.SequenceBias({(1,): 3.0})
    assert repr(dk.SequenceBias({(1,): 2.0})) == "SequenceBias(biases=(((1,), 2.0),))"


def test_sequence_bias_makes_no_nan_of_infinities_of_both_signs() -> None:
    assert biased({(0,): BANNED, (1,): 1.0}, [0], torch.tensor([[torch.inf, BANNED]])) == [BANNED, BANNED]
    most = 3e38
    assert biased({(1,): most, (0, 1): most}, [0], torch.tensor([[0.0, BANNED]])) == [0.0, BANNED]


@pytest.mark.parametrize("biases", [{}, []])
def test_sequence_bias_refuses_no_sequences(biases: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^SequenceBias: biases must hold at least one sequence, got none"):
        dk.SequenceBias(biases)


@pytest.mark.parametrize("biases", [{(): 1.0}, [([], 1.0)], {(1,): 1.0, (): 1.0}])
def test_sequence_bias_refuses_an_empty_sequence(biases: Any) -> None:  # noqa: ANN401
    with pytest.raises(
        ValueError, match=r"^SequenceBias: a sequence must hold at least one id, got an empty"
    ):
        dk.SequenceBias(biases)


@pytest.mark.parametrize("biases", [3, "ab", None])
def test_sequence_bias_refuses_what_is_no_mapping_and_no_pairs(biases: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^SequenceBias: biases must be a mapping from ids to numbers, or"):
        dk.SequenceBias(biases)


@pytest.mark.parametrize("biases", [[1], [((1,), 2.0, 3.0)], [((1,),)]])
def test_sequence_bias_refuses_what_is_no_pair(biases: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^SequenceBias: biases must be pairs of ids and bias, got"):
        dk.SequenceBias(biases)


@pytest.mark.parametrize("ids", [(-1,), (1.0,), "a", (None,), (True, 1)])
def test_sequence_bias_refuses_ids_that_are_not_ids(ids: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^SequenceBias: token ids must be integers of at least 0, got"):
        dk.SequenceBias({ids: 1.0})


@pytest.mark.parametrize("bias", [math.inf, math.nan, 1e39, -1e39, True, "1", None])
def test_sequence_bias_refuses_a_bias_that_is_neither_finite_nor_a_ban(bias: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"^SequenceBias: a bias must be a finite float32 or minus infinity"):
        dk.SequenceBias({(1,): bias})


def test_sequence_bias_refuses_an_id_outside_the_vocabulary_when_applied() -> None:
    message = r"^SequenceBias: token ids must be below the vocabulary size 4, got 4"
    with pytest.raises(ValueError, match=message):
        biased({(4, 1): 1.0}, [0], torch.zeros(1, 4))


@pytest.mark.parametrize(
    "biases", [{(2,): 1.0}, {(2, 3): -1.0, (1,): BANNED}, {(1, 2, 3): 2.0, (2, 3): BANNED, (0,) * 12: 1.0}]
)
def test_sequence_bias_keeps_the_contract_of_processors(biases: Any) -> None:  # noqa: ANN401
    check_processor(dk.SequenceBias(biases), max_examples=20)


@LAWS
@given(
    calls(),
    st.dictionaries(st.lists(st.integers(0, 8), min_size=1, max_size=4).map(tuple), BIASES, min_size=1),
)
def test_sequence_bias_is_hugging_faces(call: Call, biases: dict[tuple[int, ...], float]) -> None:
    vocab = call[1].shape[1]
    biases = {tuple(token % vocab for token in ids): float(bias) for ids, bias in biases.items()}

    def theirs(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = SequenceBiasLogitsProcessor(biases)(tokens, scores)
        return out.masked_fill(out.isnan(), BANNED)  # plus infinity and a ban

    assert_same(theirs, dk.SequenceBias(biases), call)


@LAWS
@given(calls(), st.data())
def test_sequence_bias_of_the_end_of_the_history_is_hugging_faces(call: Call, data: st.DataObject) -> None:
    tokens, scores = call
    rows, length = tokens.shape
    biases = {}
    for _ in range(data.draw(st.integers(1, 6))):
        row, count = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, length))
        last = data.draw(st.integers(0, scores.shape[1] - 1))
        biases[*tokens[row, length - count :].tolist(), last] = data.draw(st.floats(-3, 3, width=32))
    assert_same(SequenceBiasLogitsProcessor(biases), dk.SequenceBias(biases), call)
