"""Trie attention: plain everywhere; the kernel under Triton's interpreter, and on a GPU.

TRITON_INTERPRET=1 pytest -n 0 tests/accelerate/kernels
"""

import math

import pytest
import torch
from torch import Tensor

from decodekit.accelerate.kernels import split_attention, trie_attention
from decodekit.accelerate.kernels.trie_attention import (
    is_available,
    is_faster,
    pack,
    plain_attention,
    should_use_kernel,
    unpack,
)

CPU = torch.device("cpu")
DEVICES = [
    pytest.param(
        "cpu", marks=pytest.mark.skipif(not is_available(CPU), reason="needs Triton, and TRITON_INTERPRET=1")
    ),
    pytest.param("cuda", marks=pytest.mark.cuda),
]
# Tolerance for rounded inputs, weights and outputs of this size; sums are in float32.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}

# batch, heads, groups, beams, slots, width, value's width
SHAPES = [
    (1, 1, 1, 1, 1, 16, 16),
    (2, 4, 4, 5, 37, 16, 16),
    (2, 8, 2, 3, 130, 24, 24),  # grouped, no power of two
    (1, 4, 1, 8, 300, 64, 64),
    (3, 6, 3, 64, 70, 8, 20),  # all bits, several tiles of rows, values of another width
    (1, 2, 1, 70, 40, 16, 16),  # more beams than bits
]


def random(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, ...]:
    """Queries, keys, values, and the slots that every beam sees: at least one."""
    batch, heads, groups, beams, slots, width, value_width = shape
    generator = torch.Generator().manual_seed(0)
    sizes = ((batch, heads, beams, width), (batch, groups, slots, width), (batch, groups, slots, value_width))
    tensors = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    visible = torch.rand(batch, beams, slots, generator=generator) < 0.4
    visible[..., slots // 2] = True
    return tuple(tensor.to(device) for tensor in (*tensors, visible))


def row_by_row(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, softcap: float | None) -> Tensor:
    """The definition, one beam and head at a time, over the slots that it sees, in float64."""
    batch, heads, beams, width = query.shape
    out = torch.zeros(batch, heads, beams, value.shape[-1], dtype=torch.float64)
    for prompt in range(batch):
        for head in range(heads):
            group = head // (heads // key.shape[1])
            for beam in range(beams):
                seen = visible[prompt, beam]
                keys, values = key[prompt, group][seen].double(), value[prompt, group][seen].double()
                scores = keys @ query[prompt, head, beam].double() / math.sqrt(width)
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                out[prompt, head, beam] = scores.softmax(0) @ values
    return out


# Plain


def test_a_beam_attends_to_the_slots_that_it_sees() -> None:
    query, key = torch.tensor([[[[0.0], [0.0], [1.0]]]]), torch.tensor([[[[0.0], [math.log(3)], [50.0]]]])
    value = torch.tensor([[[[4.0], [8.0], [99.0]]]])
    visible = torch.tensor([[[True, True, False], [False, True, False], [True, True, False]]])
    out = plain_attention(query, key, value, visible, scale=1.0)
    torch.testing.assert_close(out.flatten(), torch.tensor([6.0, 8.0, 7.0]))


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("shape", SHAPES)
def test_plain_attention_is_its_definition_row_by_row(shape: tuple[int, ...], softcap: float | None) -> None:
    *tensors, visible = random(shape, torch.float64)
    out = plain_attention(*tensors, visible, scale=shape[5] ** -0.5, softcap=softcap)
    torch.testing.assert_close(out, row_by_row(*tensors, visible, softcap), rtol=1e-12, atol=1e-13)


def test_without_a_kernel_it_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trie_attention, "is_available", lambda _: False)
    *tensors, visible = random(SHAPES[2], torch.float32)
    expected = plain_attention(*tensors, visible, scale=24**-0.5, softcap=3.0)
    assert torch.equal(expected, trie_attention.trie_attention(*tensors, visible, softcap=3.0))
    assert torch.equal(expected, trie_attention.trie_attention(*tensors, pack(visible), softcap=3.0))


def test_float64_stays_float64() -> None:
    *tensors, visible = random(SHAPES[1], torch.float64)
    expected = plain_attention(*tensors, visible, scale=0.5)
    assert torch.equal(expected, trie_attention.trie_attention(*tensors, visible, scale=0.5))


@pytest.mark.parametrize("beams", [1, 31, 32, 63, 64])
def test_unpack_is_the_inverse_of_pack(beams: int) -> None:
    visible = torch.rand(2, beams, 50, generator=torch.Generator().manual_seed(beams)) < 0.5
    assert torch.equal(visible, unpack(pack(visible), beams))


def test_the_kernel_is_not_used_without_a_gpu() -> None:
    assert not should_use_kernel(*random(SHAPES[1], torch.float32))


def test_heads_that_are_no_multiple_of_groups_are_refused() -> None:
    *tensors, visible = random((1, 3, 2, 1, 4, 8, 8), torch.float32)
    with pytest.raises(ValueError, match=r"^trie_attention: heads must be a multiple .* got 3 for 2"):
        trie_attention.trie_attention(*tensors, visible)


@pytest.mark.parametrize(("dtype", "beams"), [(torch.int32, 33), (torch.int64, 65)])
def test_more_beams_than_bits_are_refused(dtype: torch.dtype, beams: int) -> None:
    *tensors, visible = random((1, 1, 1, beams, 4, 8, 8), torch.float32)
    with pytest.raises(ValueError, match=rf"words must have a bit for each beam, got {beams} beams"):
        trie_attention.trie_attention(*tensors, visible[:, 0].to(dtype))


# The kernel


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("shape", "dtype", "softcap"),
    [
        *((shape, torch.float32, None) for shape in SHAPES),
        *((SHAPES[2], dtype, softcap) for dtype in TOLERANCE for softcap in (None, 0.7)),
        (SHAPES[3], torch.bfloat16, None),
    ],
)
def test_the_kernel_is_near_float64(
    shape: tuple[int, ...], dtype: torch.dtype, softcap: float | None, device: str
) -> None:
    *tensors, visible = random(shape, dtype, device)
    wide = (tensor.double() for tensor in tensors)
    expected = plain_attention(*wide, visible, scale=shape[5] ** -0.5, softcap=softcap)
    actual = trie_attention.trie_attention(*tensors, visible, softcap=softcap)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("splits", [1, 2, 3, 7])
def test_every_split_of_the_slots_gives_the_same(splits: int, device: str) -> None:
    query, key, value, visible = random((2, 4, 2, 3, 290, 16, 16), torch.float32, device)
    visible[0, :, :200] = False  # whole parts that no beam sees
    actual = split_attention.split_attention(
        query, key, value, pack(visible), scale=0.25, softcap=None, splits=splits
    )
    expected = plain_attention(query, key, value, visible, scale=0.25)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_slots_that_no_beam_sees_are_not_read(device: str) -> None:
    query, key, value, visible = random(SHAPES[3], torch.float32, device)
    visible[:, :, 150:] = False
    expected = plain_attention(query, key, value, visible, scale=0.125)
    key[:, :, 150:], value[:, :, 150:] = torch.nan, torch.inf  # as in unwritten memory
    actual = trie_attention.trie_attention(query, key, value, visible)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_keys_and_values_may_be_parts_of_larger_buffers(device: str) -> None:
    query, key, value, visible = random(SHAPES[2], torch.float32, device)
    expected = plain_attention(query, key[:, :, :90], value[:, :, :90], visible[..., :90], scale=0.2)
    sliced = (key[:, :, :90], value[:, :, :90], visible[..., :90])
    assert not sliced[0].is_contiguous()
    actual = trie_attention.trie_attention(query, *sliced, scale=0.2)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_packed_words_give_the_same_as_truth_values(dtype: torch.dtype, device: str) -> None:
    query, key, value, visible = random((2, 2, 1, 32, 70, 16, 16), torch.float32, device)
    words = pack(visible).to(dtype)  # the 32nd bit is the sign
    expected = trie_attention.trie_attention(query, key, value, visible)
    assert torch.equal(expected, trie_attention.trie_attention(query, key, value, words))


@pytest.mark.parametrize("device", DEVICES)
def test_a_beam_that_sees_nothing_gets_zeros(device: str) -> None:
    query, key, value, visible = random(SHAPES[1], torch.float32, device)
    visible[1, 2] = False
    actual = trie_attention.trie_attention(query, key, value, visible)
    assert actual[1, :, 2].eq(0).all()
    torch.testing.assert_close(
        actual, plain_attention(query, key, value, visible, scale=0.25), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("device", DEVICES)
def test_large_scores_do_not_overflow(device: str) -> None:
    query, key, value, visible = random((1, 2, 1, 3, 150, 16, 16), torch.float32, device)
    wide = [tensor.double() for tensor in (1000 * query, key, value)]
    actual = trie_attention.trie_attention(1000 * query, key, value, visible)
    # Products of this size are known to 1e-4, and so are the logarithms of weights.
    torch.testing.assert_close(
        actual.double(), plain_attention(*wide, visible, scale=0.25), rtol=0, atol=1e-3
    )


@pytest.mark.cuda
def test_is_faster_measures_on_a_gpu() -> None:
    assert is_faster(*random(SHAPES[3], torch.bfloat16, "cuda")) in {True, False}
