"""The Triton kernels of trie attention. Triton is imported only when they are first called."""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

# A tile of queries, and the slots that are read at a time: a tensor core takes at least 16 of either, and
# queries with three blocks of keys and values fit 99 KB, the shared memory of a smaller GPU.
FEWEST, MOST = 16, 64
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
    """Attention over parts of the slots, and then over the parts.

    Args:
        query: One a beam.
        key: Of every slot.
        value: Of every slot.
        words: Bit `j` says whether beam `j` sees the slot.
        scale: What products are multiplied by.
        softcap: Bound of the scores, if there is one.
        splits: Parts of the slots; None: as many as keep the device busy.
    """
    attend, join, interpreted = _kernels()
    batch, heads, beams, width = query.shape
    groups, slots, value_width = key.shape[1], key.shape[2], value.shape[3]
    rows = heads // groups * beams
    # A dimension of a product must be a power of two, and at least 16.
    padded, value_padded = max(_power(width), 16), max(_power(value_width), 16)
    slot_bytes = max(padded, value_padded) * key.element_size()
    tile = _between(min(_power(rows), TILE_BYTES // slot_bytes))
    block = _between(BLOCK_BYTES // slot_bytes)
    tiles = -(-rows // tile)
    blocks = -(-slots // block)
    splits = min(_splits(batch * groups * tiles, query.device) if splits is None else splits, blocks)
    each = block * -(-blocks // splits)
    # One for every part of the slots: the greatest score, the sum of weights, the weighted sum of values.
    top = torch.empty(batch * groups, splits, rows, dtype=torch.float32, device=query.device)
    total, mixed = torch.empty_like(top), top.new_empty(batch * groups, splits, rows, value_width)
    key, value = (part if part.stride(-1) == 1 else part.contiguous() for part in (key, value))
    attend[(batch * groups, splits, tiles)](
        *(query.contiguous(), key, value, words.contiguous(), top, total, mixed),
        *(*key.stride()[:3], *value.stride()[:3]),
        *(groups, slots, each, rows, beams),
        *(scale, 0.0 if softcap is None else softcap),
        WIDTH=width,
        VALUE_WIDTH=value_width,
        PADDED=padded,
        VALUE_PADDED=value_padded,
        ROWS=tile,
        BLOCK=block,
        IS_CAPPED=softcap is not None,
        # Not rounded to less than float32; and the interpreter multiplies bfloat16 as if it were integers.
        IS_WIDE=query.dtype == torch.float32 or interpreted,
        num_warps=4,
    )
    out = query.new_empty(batch, heads, beams, value_width)
    join[(batch * groups, rows)](
        *(top, total, mixed, out, rows, splits),
        VALUE_WIDTH=value_width,
        VALUE_PADDED=_power(value_width),
        SPLITS=_power(splits),
        num_warps=4,
    )
    return out


def _power(number: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << (number - 1).bit_length()


def _between(number: int) -> int:
    """The number, not less than the fewest and not more than the most."""
    return min(max(number, FEWEST), MOST)


def _splits(programs: int, device: torch.device) -> int:
    """Parts of the slots, so that there is work for every multiprocessor twice."""
    processors = (
        torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    )
    return max(1, 2 * processors // programs)


@cache
def _kernels() -> tuple[Any, Any, bool]:
    """Both kernels, and whether they are interpreted."""
    import triton  # noqa: PLC0415 - not everywhere there
    import triton.language as tl  # noqa: PLC0415

    @triton.jit  # type: ignore[untyped-decorator]
    def attend(  # type: ignore[no-untyped-def]
        query,
        key,
        value,
        words,
        top,
        total,
        mixed,
        key_batch,
        key_group,
        key_slot,
        value_batch,
        value_group,
        value_slot,
        groups,
        slots,
        each,
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
        """One group of one prompt: some of its rows, over one part of the slots."""
        where, split, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        batch, group = (where // groups).to(tl.int64), (where % groups).to(tl.int64)
        row = tile * ROWS + tl.arange(0, ROWS)
        beam = (row % beams).to(tl.int64)
        column, value_column = tl.arange(0, PADDED), tl.arange(0, VALUE_PADDED)
        place = (where.to(tl.int64) * rows + row)[:, None]
        asks = (row < rows)[:, None] & (column < WIDTH)[None, :]
        asked = tl.load(query + place * WIDTH + column[None, :], mask=asks, other=0.0)
        if IS_WIDE:
            asked = asked.to(tl.float32)
        keys = key + batch * key_batch + group * key_group
        values = value + batch * value_batch + group * value_group
        greatest = tl.full([ROWS], -float("inf"), tl.float32)
        weight = tl.zeros([ROWS], tl.float32)
        sums = tl.zeros([ROWS, VALUE_PADDED], tl.float32)
        first = split * each
        for start in range(first, tl.minimum(first + each, slots), BLOCK):
            slot = start + tl.arange(0, BLOCK)
            word = tl.load(words + batch * slots + slot, mask=slot < slots, other=0).to(tl.int64)
            # What no beam sees is not read.
            is_live = (word != 0)[:, None]
            slot = slot.to(tl.int64)[:, None]
            said = tl.load(
                keys + slot * key_slot + column[None, :], mask=is_live & (column < WIDTH)[None, :], other=0.0
            )
            held = tl.load(
                values + slot * value_slot + value_column[None, :],
                mask=is_live & (value_column < VALUE_WIDTH)[None, :],
                other=0.0,
            )
            if IS_WIDE:
                said, held = said.to(tl.float32), held.to(tl.float32)
            scores = tl.dot(asked, tl.trans(said), input_precision="ieee") * scale
            if IS_CAPPED:
                # tanh(x) = 2 sigmoid(2x) - 1
                scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)
            sees = (word[None, :] >> beam[:, None]) & 1
            scores = tl.where(sees != 0, scores, -float("inf"))
            higher = tl.maximum(greatest, tl.max(scores, 1))
            # Before anything was seen there is nothing to be less than.
            base = tl.where(higher == -float("inf"), 0.0, higher)
            shrinks = tl.exp(greatest - base)
            weights = tl.exp(scores - base[:, None])
            weight = weight * shrinks + tl.sum(weights, 1)
            sums = sums * shrinks[:, None]
            sums += tl.dot(weights.to(held.dtype), held, input_precision="ieee")
            greatest = higher
        part = (where.to(tl.int64) * tl.num_programs(1) + split) * rows + row
        tl.store(top + part, greatest, mask=row < rows)
        tl.store(total + part, weight, mask=row < rows)
        tells = (row < rows)[:, None] & (value_column < VALUE_WIDTH)[None, :]
        tl.store(mixed + part[:, None] * VALUE_WIDTH + value_column[None, :], sums, mask=tells)

    @triton.jit  # type: ignore[untyped-decorator]
    def join(  # type: ignore[no-untyped-def]
        top,
        total,
        mixed,
        out,
        rows,
        splits,
        VALUE_WIDTH: tl.constexpr,
        VALUE_PADDED: tl.constexpr,
        SPLITS: tl.constexpr,
    ):
        """One row: its parts by their shares."""
        where, row = tl.program_id(0).to(tl.int64), tl.program_id(1)
        split, column = tl.arange(0, SPLITS), tl.arange(0, VALUE_PADDED)
        part = (where * splits + split) * rows + row
        greatest = tl.load(top + part, mask=split < splits, other=-float("inf"))
        weight = tl.load(total + part, mask=split < splits, other=0.0)
        base = tl.max(greatest, 0)
        share = tl.exp(greatest - tl.where(base == -float("inf"), 0.0, base))
        held = tl.load(
            mixed + part[:, None] * VALUE_WIDTH + column[None, :],
            mask=(split < splits)[:, None] & (column < VALUE_WIDTH)[None, :],
            other=0.0,
        )
        whole = tl.sum(weight * share, 0)
        # A beam that sees nothing: zeros over one.
        mean = tl.sum(held * share[:, None], 0) / tl.where(whole == 0.0, 1.0, whole)
        place = out + (where * rows + row) * VALUE_WIDTH + column
        tl.store(place, mean.to(out.dtype.element_ty), mask=column < VALUE_WIDTH)

    return attend, join, type(attend).__name__ == "InterpretedFunction"
