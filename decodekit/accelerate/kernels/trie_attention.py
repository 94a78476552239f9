"""Attention of the beams of a prompt to the slots of a trie, which reads each key and value only once."""

import math
import os
import time
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from decodekit.accelerate.kernels.split_attention import split_attention
from decodekit.core.validation import shown

# Bits of a word: the beams that one launch serves.
MAX_BEAMS = 64
# Tolerance relative to the largest value: products of float32 may be computed in TF32.
_TOLERANCE = {torch.float32: 2e-3, torch.float16: 4e-3, torch.bfloat16: 3e-2}

# Calls that a comparison of speed times.
_REPEATS = 20

# Inputs of attention over a trie.
Query = Float[Tensor, "batch heads beams width"]
Key = Float[Tensor, "batch groups slots width"]
Value = Float[Tensor, "batch groups slots value_width"]
# The slots that each beam sees: as truth values, or for at most 64 beams as the bits of one word per slot.
Seen = Bool[Tensor, "batch beams slots"]
Visible = Seen | Int[Tensor, "batch slots"]


def is_available(device: torch.device) -> bool:
    """True if the kernel runs on the device: on CUDA with Triton, or on the CPU under Triton's interpreter.

    The interpreter is for tests. Set `TRITON_INTERPRET=1` before Triton is imported.
    """
    is_interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET", "") == "1"
    return _has_triton() and (device.type == "cuda" or is_interpreted)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def trie_attention(
    query: Query,
    key: Key,
    value: Value,
    visible: Visible,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "batch heads beams value_width"]:
    r"""Attention of every beam to the slots that it sees, with sums in float32.

    $\sum_s \mathrm{softmax}_s(\mathrm{scale} \cdot q \cdot k_s)\, v_s$ over the visible slots. The heads of a
    group and all beams are rows of one tile, so a key is read once per prompt and group, and a slot that no
    beam sees is never read. The slots are split, so that a single prompt keeps a device busy too.

    The kernel has never run on a GPU: it was tested with Triton's interpreter, and compiled for compute
    capability 9.0. Sessions therefore use it only if `should_use_kernel` finds it correct and faster than
    PyTorch's attention with a mask on the current device.

    Args:
        query: One per beam. The number of heads is a multiple of the groups; heads of a group are adjacent.
        key, value: One per slot, the prompt's first; may be parts of a larger buffer.
        visible: The slots that each beam sees, as truth values or packed by `pack`. Hides left padding,
            unused slots and slots outside a window. A beam that sees nothing gets zeros.
        scale: Factor of the products; None for one over the square root of the width.
        softcap: Bound of the scores, applied as a hyperbolic tangent; None for no bound.

    Example:
        >>> query, key = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 3, 2)
        >>> value, visible = torch.tensor([[[[1.0], [3.0], [9.0]]]]), torch.tensor([[[True, True, False]]])
        >>> trie_attention(query, key, value, visible)
        tensor([[[[2.]]]])

    Source:
        The split over keys: Dao et al., 2023, https://pytorch.org/blog/flash-decoding/.
    """
    heads, beams, width = query.shape[1:]
    groups = key.shape[1]
    if heads % groups:
        raise ValueError(f"trie_attention: heads must be a multiple of groups, got {heads} for {groups}.")
    if visible.dtype != torch.bool and beams > torch.iinfo(visible.dtype).bits:
        raise ValueError(
            f"trie_attention: {visible.dtype} words must have a bit for each beam, got {beams} beams. "
            "Give truth values instead."
        )
    scale = 1 / math.sqrt(width) if scale is None else scale
    if not is_available(query.device) or query.dtype == torch.float64:
        return plain_attention(query, key, value, visible, scale=scale, softcap=softcap)
    if beams <= MAX_BEAMS:
        words = visible if visible.dtype != torch.bool else pack(visible)
        return split_attention(query, key, value, words, scale=scale, softcap=softcap)
    parts = zip(torch.split(query, MAX_BEAMS, 2), torch.split(visible, MAX_BEAMS, 1), strict=True)
    outputs = [
        split_attention(part, key, value, pack(seen), scale=scale, softcap=softcap) for part, seen in parts
    ]
    return torch.cat(outputs, 2)


def plain_attention(
    query: Query, key: Key, value: Value, visible: Visible, *, scale: float, softcap: float | None = None
) -> Float[Tensor, "batch heads beams value_width"]:
    """Trie attention in plain PyTorch, as a reference: in float64 if the query is, else in float32."""
    batch, heads, beams, width = query.shape
    groups, wide = key.shape[1], torch.float64 if query.dtype == torch.float64 else torch.float32
    seen = visible if visible.dtype == torch.bool else unpack(visible, beams)
    # [batch heads beams width] -> [batch groups share*beams width]
    rows = query.to(wide).reshape(batch, groups, -1, width)
    scores = scale * rows @ key.to(wide).transpose(-1, -2)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    hidden = ~seen[:, None].repeat(1, 1, heads // groups, 1)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).masked_fill(hidden, 0.0)
    return (weights @ value.to(wide)).view(batch, heads, beams, -1).to(query.dtype)


def masked_attention(
    query: Query, key: Key, value: Value, mask: Float[Tensor, "batch 1 beams slots"], scale: float | None
) -> Float[Tensor, "batch heads beams value_width"]:
    """PyTorch's attention with an additive mask; the heads of a group are queries of one head."""
    batch, heads, beams, width = query.shape
    groups = key.shape[1]
    # [batch heads beams width] -> [batch groups share*beams width]
    rows, mask = query.reshape(batch, groups, -1, width), mask.repeat(1, 1, heads // groups, 1)
    output = nn.functional.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scale)
    return output.view(batch, heads, beams, -1)


def pack(visible: Seen) -> Int64[Tensor, "batch slots"]:
    """Pack visibility into one word per slot: bit `j` is set if beam `j` sees it. For at most 64 beams.

    Example:
        >>> pack(torch.tensor([[[True, False], [True, True]]]))
        tensor([[3, 2]])
    """
    bits = torch.arange(visible.shape[1], device=visible.device)[:, None]
    return (visible.long() << bits).sum(1)


def unpack(words: Int[Tensor, "batch slots"], beams: int) -> Seen:
    """The inverse of `pack`."""
    bits = torch.arange(beams, device=words.device, dtype=words.dtype)[:, None]
    return (words[:, None] >> bits & 1).bool()


def should_use_kernel(query: Query, key: Key, value: Value, visible: Seen) -> bool:
    """True if the kernel is right and faster on these tensors. Runs it, and waits for the device.

    False where the kernel does not run or is interpreted, and where it raises.
    """
    if query.device.type != "cuda" or query.dtype not in _TOLERANCE or not is_available(query.device):
        return False
    try:
        return is_accurate(query, key, value, visible) and is_faster(query, key, value, visible)
    except Exception as error:  # noqa: BLE001 - Triton's compiler raises many kinds
        warnings.warn(
            f"trie_attention: the kernel is not used because it raises {shown(error, 200)}", stacklevel=2
        )
        return False


def is_accurate(query: Query, key: Key, value: Value, visible: Seen) -> bool:
    """True if the kernel gives the result of plain PyTorch in float32, up to rounding."""
    actual = trie_attention(query, key, value, visible).float()
    scale = 1 / math.sqrt(query.shape[-1])
    expected = plain_attention(query.float(), key.float(), value.float(), visible, scale=scale)
    tolerance = _TOLERANCE[query.dtype]
    return torch.allclose(actual, expected, rtol=tolerance, atol=tolerance * float(value.abs().max()))


def is_faster(query: Query, key: Key, value: Value, visible: Seen) -> bool:
    """True if the kernel beats PyTorch's attention with a mask on these tensors. Times both on the device."""
    mask = torch.zeros(visible.shape, dtype=query.dtype, device=query.device)
    mask = mask.masked_fill(~visible, -torch.inf)[:, None]
    words, scale = pack(visible), 1 / math.sqrt(query.shape[-1])

    def seconds(attend: Callable[[], Tensor]) -> float:
        attend()  # compiles, and warms up
        torch.cuda.synchronize(query.device)
        start = time.perf_counter()
        for _ in range(_REPEATS):
            attend()
        torch.cuda.synchronize(query.device)
        return time.perf_counter() - start

    by_kernel = seconds(lambda: split_attention(query, key, value, words, scale=scale, softcap=None))
    return seconds(lambda: masked_attention(query, key, value, mask, scale)) > by_kernel
