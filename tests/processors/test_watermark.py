from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import WatermarkLogitsProcessor

import decodekit as dk
from decodekit.testing import check_processor
from tests.processors.parity import LAWS, Call, assert_same, calls

SCHEMES = st.sampled_from(["lefthash", "selfhash"])


def greens(processor: dk.Watermark, text: list[int], vocab: int) -> list[int]:
    """The ids with a raised score after the ids in `text`."""
    raised = processor(torch.tensor([text]), torch.zeros(1, vocab))[0]
    return [token for token, score in enumerate(raised.tolist()) if score > 0]


def test_watermark_adds_the_bias_to_the_green_tokens_only() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]])
    for lists in ("permutation", "hash"):
        added = dk.Watermark(0.5, 1.5, lists=lists)(torch.tensor([[3]]), scores) - scores
        assert {0.0, 1.5} == set(added[0].tolist())


def test_watermark_draws_lists_of_the_ratios_size_by_permutation() -> None:
    assert {25} == {len(greens(dk.Watermark(0.25), [last], 100)) for last in range(20)}


def test_watermark_makes_a_token_green_with_the_ratios_probability_by_hash() -> None:
    # 20,000 tokens: the standard deviation of the mean is 0.35% at most, of which 4 are allowed.
    contexts, tokens = torch.arange(4)[:, None], torch.arange(20_000).expand(4, -1)
    for ratio in (0.1, 0.25, 0.5, 0.9):
        for scheme in ("lefthash", "selfhash"):
            mark = dk.Watermark(ratio, seeding_scheme=scheme, context_width=2, lists="hash")
            share = mark.is_green(contexts, tokens, 20_000).double().mean().item()
            assert abs(ratio - share) < 0.014


@pytest.mark.parametrize("lists", ["permutation", "hash"])
def test_watermark_lists_depend_on_the_key_and_the_last_token_only_by_lefthash(lists: Any) -> None:  # noqa: ANN401
    mark = dk.Watermark(0.5, lists=lists)
    assert greens(mark, [1, 2, 7], 60) == greens(mark, [5, 7], 60)
    assert greens(mark, [1, 2, 7], 60) != greens(mark, [1, 2, 8], 60)
    assert greens(mark, [7], 60) != greens(dk.Watermark(0.5, hashing_key=3, lists=lists), [7], 60)


@pytest.mark.parametrize("lists", ["permutation", "hash"])
def test_watermark_lists_depend_on_the_last_tokens_in_any_order_by_selfhash(lists: Any) -> None:  # noqa: ANN401
    mark = dk.Watermark(0.5, seeding_scheme="selfhash", context_width=3, lists=lists)
    assert mark.reach == 2
    assert greens(mark, [9, 1, 2], 60) == greens(mark, [4, 2, 1], 60)
    assert greens(mark, [9, 1, 2], 60) != greens(mark, [9, 1, 3], 60)
    assert greens(mark, [9, 1, 2], 60) != greens(mark, [9, 5, 2], 60)


def test_watermark_tries_the_forty_likeliest_tokens_by_selfhash_and_permutations() -> None:
    scores = torch.arange(100.0)[None]
    mark = dk.Watermark(0.99, seeding_scheme="selfhash")
    raised = (mark(torch.tensor([[1]]), scores) > scores)[0]
    assert not raised[:60].any()
    assert raised[60:].sum() > 30
    wide = dk.Watermark(0.99, seeding_scheme="selfhash", lists="hash")
    assert (wide(torch.tensor([[1]]), scores) > scores)[0, :60].sum() > 50


def test_watermark_leaves_rows_shorter_than_the_context_as_they_are() -> None:
    history = dk.Prompt.from_ids([[1, 2, 3], [4, 5]]).history(5, 1)
    for lists in ("permutation", "hash"):
        mark = dk.Watermark(0.5, context_width=3, lists=lists)
        raised = mark.process(history, torch.zeros(2, 40)) > 0
        assert raised.any(1).tolist() == [True, False]


def test_watermark_can_be_captured_if_its_lists_are_hashes() -> None:
    assert dk.Watermark(lists="hash").capturable
    assert not dk.Watermark().capturable
    assert not dk.Chain(dk.TopK(3), dk.Watermark()).capturable


def test_watermark_takes_a_bias_for_each_prompt() -> None:
    for lists in ("permutation", "hash"):
        out = dk.Watermark(0.5, [1.0, 3.0], lists=lists)(torch.tensor([[1], [1]]), torch.zeros(2, 40))
        assert out.amax(1).tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"greenlist_ratio": 0.0}, r"greenlist_ratio must be in \(0, 1\), got 0.0"),
        ({"greenlist_ratio": 1}, r"greenlist_ratio must be in \(0, 1\), got 1"),
        ({"greenlist_ratio": float("nan")}, r"greenlist_ratio must be"),
        ({"bias": -1.0}, r"bias must be a finite number of at least 0, got -1.0"),
        ({"bias": float("inf")}, r"bias must be"),
        ({"bias": [1.0, "2"]}, r"bias must be"),
        ({"hashing_key": -1}, r"hashing_key must be an integer in \[0, 2\*\*63\), got -1"),
        ({"hashing_key": 2**63}, r"hashing_key must be"),
        ({"hashing_key": 1.0}, r"hashing_key must be"),
        (
            {"seeding_scheme": "minhash"},
            r"seeding_scheme must be one of \('lefthash', 'selfhash'\), got 'minhash'",
        ),
        ({"context_width": 0}, r"context_width must be an integer of at least 1, got 0"),
        ({"context_width": True}, r"context_width must be"),
        ({"lists": "torch"}, r"lists must be one of \('permutation', 'hash'\), got 'torch'"),
    ],
)
def test_watermark_refuses_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^Watermark: {message}"):
        dk.Watermark(**arguments)


@pytest.mark.parametrize("lists", ["permutation", "hash"])
@pytest.mark.parametrize("scheme", ["lefthash", "selfhash"])
def test_watermark_keeps_the_contract_of_processors(lists: Any, scheme: Any) -> None:  # noqa: ANN401
    for width in (1, 3):
        check_processor(
            dk.Watermark(0.5, seeding_scheme=scheme, context_width=width, lists=lists), max_examples=10
        )
    check_processor(
        lambda prompts: dk.Watermark(
            0.5, [0.5 + number for number in prompts], seeding_scheme=scheme, lists=lists
        ),
        max_examples=10,
    )


@pytest.mark.slow
@LAWS
@given(calls(), st.sampled_from([0.1, 0.25, 0.5, 0.9]), SCHEMES, st.integers(1, 4), st.integers(0, 2**40))
def test_watermark_is_hugging_faces(call: Call, ratio: float, scheme: Any, width: int, key: int) -> None:  # noqa: ANN401
    tokens, few = call
    # Theirs needs 40 tokens to try, and fails where none of them is green.
    scores = torch.cat([few, few.new_zeros(len(few), 40)], 1) if scheme == "selfhash" else few
    key = key % 3 if scheme == "selfhash" else key  # a table of a million numbers for every key
    vocab = scores.shape[1]
    theirs = WatermarkLogitsProcessor(vocab, "cpu", ratio, 2.0, key, scheme, width)
    ours = dk.Watermark(ratio, 2.0, key, scheme, width)
    if scheme == "selfhash" and tokens.shape[1] >= width and (ours(tokens, scores) == scores).all(1).any():
        return
    assert_same(theirs, ours, (tokens, scores))


@pytest.mark.parametrize("scheme", ["lefthash", "selfhash"])
def test_watermark_is_hugging_faces_on_a_large_vocabulary(scheme: Any) -> None:  # noqa: ANN401
    generator = torch.Generator().manual_seed(0)
    call = torch.randint(0, 50_000, (3, 9), generator=generator), torch.randn(3, 50_000, generator=generator)
    theirs = WatermarkLogitsProcessor(50_000, "cpu", seeding_scheme=scheme, context_width=4)
    assert_same(theirs, dk.Watermark(seeding_scheme=scheme, context_width=4), call)
