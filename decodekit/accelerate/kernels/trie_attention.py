"""Attention of the beams of a prompt to the slots of a trie, each key and value read once for all of them."""

import math
import os
import time
import warnings
from functools import cache
from importlib.util import find_spec

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from decodekit.accelerate.kernels.split_attention import split_attention

# Bits of a word: the beams that one launch serves.
BEAMS = 64
# What rounding costs, of the largest value: products of float32 may be taken in TF32.
_NEAR = {torch.float32: 2e-3, torch.float16: 4e-3, torch.bfloat16: 3e-2}

# Which beams see which slots: as truth values, or for at most 64 beams as the bits of one word a slot.
Visible = Bool[Tensor, "batch beams slots"] | Int[Tensor, "batch slots"]


def is_available(device: torch.device) -> bool:
    """Whether the kernel runs on the device: CUDA with Triton, or the CPU under Triton's interpreter.

    The interpreter is for tests: it is asked for with `TRITON_INTERPRET=1`, before Triton is imported.
    """
    if not _has_triton():
        return False
    return device.type == "cuda" or (device.type == "cpu" and is_interpreted())


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def is_interpreted() -> bool:
    """Whether Triton was told to interpret its kernels."""
    return os.environ.get("TRITON_INTERPRET", "") == "1"


def trie_attention(
    query: Float[Tensor, "batch heads beams width"],
    key: Float[Tensor, "batch groups slots width"],
    value: Float[Tensor, "batch groups slots value_width"],
    visible: Visible,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "batch heads beams value_width"]:
    r"""What every beam of every prompt attends to, with sums in float32.

    $\sum_s \mathrm{softmax}_s(\mathrm{scale} \cdot q \cdot k_s)\, v_s$ over the slots that the beam sees. The
    heads of a group and all beams are rows of one tile, so a key is read once a prompt and group, and a slot
    that no beam sees is not read at all. The slots are split, so that one prompt too keeps a device busy.

    Written where there was no GPU: it was tested with Triton's interpreter and compiled for one (compute
    capability 9.0), but never run there. So it is used only where `pays` has found, on the device at hand,
    that it is right and faster than PyTorch's own attention with a mask.

    Args:
        query: One a beam. Heads are a multiple of groups, those of a group together.
        key: Of every slot, the prompt's first; may be a part of a larger buffer.
        value: As `key`.
        visible: Which beams see which slots, as truth values or as `pack` packs them. Left padding, unused
            slots and windows are what is not seen. A beam that sees nothing gets zeros.
        scale: What products are multiplied by; None: one over the square root of the width.
        softcap: If given, scores are squeezed between minus and plus this by a hyperbolic tangent.

    Raises:
        ValueError: If heads are not a multiple of groups, or more than 64 beams are packed.

    Example:
        >>> query, key = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 3, 2)
        >>> value, visible = torch.tensor([[[[1.0], [3.0], [9.0]]]]), torch.tensor([[[True, True, False]]])
        >>> trie_attention(query, key, value, visible)
        tensor([[[[2.]]]])

    Source:
        The split over keys: Dao et al., 2023, https://pytorch.org/blog/flash-decoding/.

    Hugging Face:
        None.
    """
    heads, beams, width = query.shape[1:]
    _check(heads, key.shape[1], beams, visible)
    scale = 1 / math.sqrt(width) if scale is None else scale
    if not is_available(query.device) or query.dtype == torch.float64:
        return plain_attention(query, key, value, visible, scale=scale, softcap=softcap)
    if beams <= BEAMS:
        words = visible if visible.dtype != torch.bool else pack(visible)
        return split_attention(query, key, value, words, scale=scale, softcap=softcap)
    parts = zip(torch.split(query, BEAMS, 2), torch.split(visible, BEAMS, 1), strict=True)
    done = [
        split_attention(some, key, value, pack(seen), scale=scale, softcap=softcap) for some, seen in parts
    ]
    return torch.cat(done, 2)


def plain_attention(
    query: Float[Tensor, "batch heads beams width"],
    key: Float[Tensor, "batch groups slots width"],
    value: Float[Tensor, "batch groups slots value_width"],
    visible: Visible,
    *,
    scale: float,
    softcap: float | None = None,
) -> Float[Tensor, "batch heads beams value_width"]:
    """The same in plain PyTorch, in float64 if the query is, else in float32: what the kernel must give."""
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


def pack(visible: Bool[Tensor, "batch beams slots"]) -> Int64[Tensor, "batch slots"]:
    """One word a slot, whose bit `j` says whether beam `j` sees it; for at most 64 beams.

    Example:
        >>> pack(torch.tensor([[[True, False], [True, True]]]))
        tensor([[3, 2]])
    """
    bits = torch.arange(visible.shape[1], device=visible.device)[:, None]
    return (visible.long() << bits).sum(1)


def unpack(words: Int[Tensor, "batch slots"], beams: int) -> Bool[Tensor, "batch beams slots"]:
    """What `pack` packed."""
    bits = torch.arange(beams, device=words.device, dtype=words.dtype)[:, None]
    return (words[:, None] >> bits & 1).bool()


def pays(
    query: Float[Tensor, "batch heads beams width"],
    key: Float[Tensor, "batch groups slots width"],
    value: Float[Tensor, "batch groups slots value_width"],
    visible: Bool[Tensor, "batch beams slots"],
) -> bool:
    """Whether the kernel is right and faster on these tensors: tries it. Waits for the device.

    False wherever the kernel does not run, or is only interpreted, and where it raises.
    """
    if query.device.type != "cuda" or query.dtype not in _NEAR or not is_available(query.device):
        return False
    try:
        return is_right(query, key, value, visible) and is_faster(query, key, value, visible)
    except Exception as error:  # noqa: BLE001 - Triton's compiler raises what it likes
        warnings.warn(f"trie_attention: the kernel is not used, as it raises {error!r:.200}", stacklevel=2)
        return False


def is_right(
    query: Float[Tensor, "batch heads beams width"],
    key: Float[Tensor, "batch groups slots width"],
    value: Float[Tensor, "batch groups slots value_width"],
    visible: Bool[Tensor, "batch beams slots"],
) -> bool:
    """Whether the kernel gives what plain PyTorch gives in float32, but for rounding."""
    given = trie_attention(query, key, value, visible).float()
    scale = 1 / math.sqrt(query.shape[-1])
    right = plain_attention(query.float(), key.float(), value.float(), visible, scale=scale)
    near = _NEAR[query.dtype]
    return torch.allclose(given, right, rtol=near, atol=near * float(value.abs().max()))


def is_faster(
    query: Float[Tensor, "batch heads beams width"],
    key: Float[Tensor, "batch groups slots width"],
    value: Float[Tensor, "batch groups slots value_width"],
    visible: Bool[Tensor, "batch beams slots"],
    *,
    repeats: int = 20,
) -> bool:
    """Whether the kernel beats PyTorch's own attention with a mask on these tensors: measures both.

    Waits for the device. False wherever the kernel does not run, or is only interpreted.
    """
    if query.device.type != "cuda" or not is_available(query.device):
        return False
    batch, heads, _, width = query.shape
    groups = key.shape[1]
    mask = torch.zeros(visible.shape, dtype=query.dtype, device=query.device)
    mask = mask.masked_fill(~visible, -torch.inf)[:, None].repeat(1, 1, heads // groups, 1)

    def theirs() -> Tensor:
        together = query.reshape(batch, groups, -1, width)
        return torch.nn.functional.scaled_dot_product_attention(together, key, value, attn_mask=mask)

    words, scale = pack(visible), 1 / math.sqrt(width)

    def ours() -> Tensor:
        return split_attention(query, key, value, words, scale=scale, softcap=None)

    seconds = []
    for attend in (theirs, ours):
        attend()  # compiles, and warms up
        torch.cuda.synchronize(query.device)
        start = time.perf_counter()
        for _ in range(repeats):
            attend()
        torch.cuda.synchronize(query.device)
        seconds.append(time.perf_counter() - start)
    theirs_took, ours_took = seconds
    return ours_took < theirs_took


def _check(heads: int, groups: int, beams: int, visible: Tensor) -> None:
    if heads % groups:
        raise ValueError(
            f"trie_attention: heads must be a multiple of the groups of keys, got {heads} for {groups}."
        )
    if visible.dtype != torch.bool and beams > torch.iinfo(visible.dtype).bits:
        raise ValueError(
            f"trie_attention: {visible.dtype} words must have a bit for each beam, got {beams} beams. "
            "Give truth values instead."
        )
