"""Triton kernels of trie attention. Triton is imported at the first call."""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Bounds of a tile of queries and of a block of slots: a tensor core takes at least 16 of either, and queries
# with three blocks of keys and values fit 99 KB, the shared memory of a smaller GPU.
MIN_SIZE, MAX_SIZE = 16, 64
TILE_BYTES, BLOCK_BYTES = 2**15, 2**14


def split_attention(
    query: Float[Tensor, "batch heads beams width"],
    key: Float[Tensor, "batch groups slots width"],
    value: Float[Tensor, "batch groups slots value_width"],
    words: Int[Tensor, "batch slots"],
    *,
    scale: float,
    softcap: float | None,
    splits: int | None = None,
) -> Float[Tensor, "batch heads beams value_width"]:
    """Attention over each part of the slots, and the combination of the parts.

    The arguments are those of `trie_attention`, with packed words. If `splits` is None, there are enough
    parts to keep the device busy.
    """
    attend, combine, interpreted = _kernels()
    batch, heads, beams, width = query.shape
    groups, slots, value_width = key.shape[1], key.shape[2], value.shape[3]
    rows = heads // groups * beams
    # A dimension of a product must be a power of two, and at least 16.
    padded, value_padded = max(_power(width), 16), max(_power(value_width), 16)
    slot_bytes = max(padded, value_padded) * key.element_size()
    tile = _clamp(min(_power(rows), TILE_BYTES // slot_bytes))
    block = _clamp(BLOCK_BYTES // slot_bytes)
    tiles = -(-rows // tile)
    blocks = -(-slots // block)
    splits = min(_splits(batch * groups * tiles, query.device) if splits is None else splits, blocks)
    split_size = block * -(-blocks // splits)
    # For every part of the slots: the maximum score, the sum of weights, the weighted sum of values.
    maxima = torch.empty(batch * groups, splits, rows, dtype=torch.float32, device=query.device)
    totals, sums = torch.empty_like(maxima), maxima.new_empty(batch * groups, splits, rows, value_width)
    key, value = (tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (key, value))
    attend[(batch * groups, splits, tiles)](
        *(query.contiguous(), key, value, words.contiguous(), maxima, totals, sums),
        *(*key.stride()[:3], *value.stride()[:3]),
        *(groups, slots, split_size, rows, beams),
        *(scale, 0.0 if softcap is None else softcap),
        WIDTH=width,
        VALUE_WIDTH=value_width,
        PADDED=padded,
        VALUE_PADDED=value_padded,
        ROWS=tile,
        BLOCK=block,
        IS_CAPPED=softcap is not None,
        # No products of less than float32; and the interpreter multiplies bfloat16 as if it were integers.
        IS_WIDE=query.dtype == torch.float32 or interpreted,
        num_warps=4,
    )
    out = query.new_empty(batch, heads, beams, value_width)
    combine[(batch * groups, rows)](
        *(maxima, totals, sums, out, rows, splits),
        VALUE_WIDTH=value_width,
        VALUE_PADDED=_power(value_width),
        SPLITS=_power(splits),
        num_warps=4,
    )
    return out


def _power(number: int) -> int:
    """The smallest power of two that is at least the number."""
    return 1 << (number - 1).bit_length()


def _clamp(size: int) -> int:
    return min(max(size, MIN_SIZE), MAX_SIZE)


def _splits(programs: int, device: torch.device) -> int:
    """Parts of the slots that give every multiprocessor two programs."""
    processors = (
        torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    )
    return max(1, 2 * processors // programs)


@cache
def _kernels() -> tuple[Any, Any, bool]:
    """Both kernels; the third value is True if Triton interprets them."""
    import triton  # noqa: PLC0415 - optional
    import triton.language as tl  # noqa: PLC0415

    @triton.jit  # type: ignore[untyped-decorator]
    def attend(  # type: ignore[no-untyped-def]
        query,
        key,
        value,
        words,
        maxima,
        totals,
        part_sums,
        key_batch,
        key_group,
        key_slot,
        value_batch,
        value_group,
        value_slot,
        groups,
        slots,
        split_size,
        rows,
        beams,
        scale,
        softcap,
        WIDTH: tl.constexpr,
        VALUE_WIDTH: tl.constexpr,
        PADDED: tl.constexpr,
        VALUE_PADDED: tl.constexpr,
        ROWS: tl.constexpr,
        BLOCK: tl.constexpr,
        IS_CAPPED: tl.constexpr,
        IS_WIDE: tl.constexpr,
    ):
        """A tile of rows of one prompt and group, over one part of the slots."""
        pair, split, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        batch, group = (pair // groups).to(tl.int64), (pair % groups).to(tl.int64)
        row = tile * ROWS + tl.arange(0, ROWS)
        beam = (row % beams).to(tl.int64)
        column, value_column = tl.arange(0, PADDED), tl.arange(0, VALUE_PADDED)
        query_row = (pair.to(tl.int64) * rows + row)[:, None]
        query_mask = (row < rows)[:, None] & (column < WIDTH)[None, :]
        queries = tl.load(query + query_row * WIDTH + column[None, :], mask=query_mask, other=0.0)
        if IS_WIDE:
            queries = queries.to(tl.float32)
        keys = key + batch * key_batch + group * key_group
        values = value + batch * value_batch + group * value_group
        maximum = tl.full([ROWS], -float("inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        sums = tl.zeros([ROWS, VALUE_PADDED], tl.float32)
        start_slot = split * split_size
        for start in range(start_slot, tl.minimum(start_slot + split_size, slots), BLOCK):
            slot = start + tl.arange(0, BLOCK)
            word = tl.load(words + batch * slots + slot, mask=slot < slots, other=0).to(tl.int64)
            # Slots that no beam sees are not read.
            is_seen = (word != 0)[:, None]
            slot = slot.to(tl.int64)[:, None]
            key_block = tl.load(
                keys + slot * key_slot + column[None, :], mask=is_seen & (column < WIDTH)[None, :], other=0.0
            )
            value_block = tl.load(
                values + slot * value_slot + value_column[None, :],
                mask=is_seen & (value_column < VALUE_WIDTH)[None, :],
                other=0.0,
            )
            if IS_WIDE:
                key_block, value_block = key_block.to(tl.float32), value_block.to(tl.float32)
            scores = tl.dot(queries, tl.trans(key_block), input_precision="ieee") * scale
            if IS_CAPPED:
                # tanh(x) = 2 sigmoid(2x) - 1
                scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)
            sees = (word[None, :] >> beam[:, None]) & 1
            scores = tl.where(sees != 0, scores, -float("inf"))
            new_maximum = tl.maximum(maximum, tl.max(scores, 1))
            # The maximum is -inf until a slot was seen.
            base = tl.where(new_maximum == -float("inf"), 0.0, new_maximum)
            rescale = tl.exp(maximum - base)
            weights = tl.exp(scores - base[:, None])
            total = total * rescale + tl.sum(weights, 1)
            sums = sums * rescale[:, None]
            sums += tl.dot(weights.to(value_block.dtype), value_block, input_precision="ieee")
            maximum = new_maximum
        part = (pair.to(tl.int64) * tl.num_programs(1) + split) * rows + row
        tl.store(maxima + part, maximum, mask=row < rows)
        tl.store(totals + part, total, mask=row < rows)
        out_mask = (row < rows)[:, None] & (value_column < VALUE_WIDTH)[None, :]
        tl.store(part_sums + part[:, None] * VALUE_WIDTH + value_column[None, :], sums, mask=out_mask)

    @triton.jit  # type: ignore[untyped-decorator]
    def combine(  # type: ignore[no-untyped-def]
        maxima,
        totals,
        part_sums,
        out,
        rows,
        splits,
        VALUE_WIDTH: tl.constexpr,
        VALUE_PADDED: tl.constexpr,
        SPLITS: tl.constexpr,
    ):
        """The mean of one row's parts, by their shares of the total weight."""
        pair, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
        split, column = tl.arange(0, SPLITS), tl.arange(0, VALUE_PADDED)
        part = (pair * splits + split) * rows + row
        maximum = tl.load(maxima + part, mask=split < splits, other=-float("inf"))
        total = tl.load(totals + part, mask=split < splits, other=0.0)
        base = tl.max(maximum, 0)
        share = tl.exp(maximum - tl.where(base == -float("inf"), 0.0, base))
        sums = tl.load(
            part_sums + part[:, None] * VALUE_WIDTH + column[None, :],
            mask=(split < splits)[:, None] & (column < VALUE_WIDTH)[None, :],
            other=0.0,
        )
        norm = tl.sum(total * share, 0)
        # A beam that sees nothing gets 0 / 1.
        mean = tl.sum(sums * share[:, None], 0) / tl.where(norm == 0.0, 1.0, norm)
        target = out + (pair * rows + row) * VALUE_WIDTH + column
        tl.store(target, mean.to(out.dtype.element_ty), mask=column < VALUE_WIDTH)

    return attend, combine, type(attend).__name__ == "InterpretedFunction"
