"""Linear layers with weights in the memory layout in which oneDNN multiplies them.

oneDNN's own operators pack the weights. They serve every number of rows, compile nothing, and leave the
model's layers in place. The alternatives gain less: `torch.compile` with freezing compiles for a second per
layer, fixes the weights for good, and uses MKL's packing for a known number of rows; `torch.utils.mkldnn`
copies the model and does not support `Conv1D`. `benchmarks/packed_linear.py` measures them all. The operators
are private: a numerical test checks that they exist, and without them nothing is packed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, final
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor, nn

from decodekit.accelerate.free_memory import memory_left
from decodekit.core.validation import shown
from decodekit.errors import ModelError

# At 256 rows the plain product is as fast: benchmarks/packed_linear.py.
MAX_ROWS = 64
# For a single row the plain product is as fast on one thread.
_MIN_ROWS, _MIN_ROWS_ON_ONE_THREAD = 1, 2
# A call of oneDNN takes about 20 us, more than it saves below 256 x 1024 weights.
MIN_WEIGHTS = 2**18
# Rows that the blocks are laid out for: a layout for one row is slow with several, this one is fast with any
# number.
_TYPICAL_ROWS = 8

Packed = bool | Literal["auto"]
Key = tuple[int, tuple[int, ...], tuple[int, ...]]


class LinearLayer(NamedTuple):
    """A linear layer; `transposed` if it stores its weight as `[in out]`, as transformers' `Conv1D` does."""

    module: Any
    transposed: bool

    @property
    def weight(self) -> Tensor:
        """The weight as oneDNN takes it, `[out in]`."""
        weight: Tensor = self.module.weight.detach()
        return weight.t() if self.transposed else weight

    @property
    def key(self) -> Key:
        """Equal for two layers exactly if they share a weight."""
        weight = self.weight
        return weight.data_ptr(), tuple(weight.shape), weight.stride()


class Packable(NamedTuple):
    """Modules of a model that may run faster: linear layers, and tanh-GELUs made of several operations."""

    layers: list[LinearLayer]
    gelus: list[nn.Module]


@dataclass(frozen=True, eq=False)
class Pack:
    """A packed copy of a weight."""

    content: Tensor  # only oneDNN can read it
    version: int  # torch's count of changes of the weight; -1 if torch does not count them
    digest: Int32[Tensor, " lines"]  # of the weight
    bytes: int


# The packs in use: models with common weights (a model, and its first layers as a draft) share one copy.
_held: WeakValueDictionary[Key, Pack] = WeakValueDictionary()


@final
class Packing:
    """The packed copies of a model's linear layers.

    Outside of `active` the model is unchanged, and it never gets new attributes. A weight that several layers
    share is packed once. Within `active`, a GELU that is written as several operations is one operation.
    Plain linear layers in float32 on the CPU can be packed: with `packed=True` all of them, with `"auto"` the
    layers that gain from it, if the copies take less than half of the free memory.

    Raises:
        ModelError: If `packed` is True, and this torch has no such operators or the model no such layers.
    """

    def __init__(self, model: nn.Module, packed: Packed, find: Callable[[nn.Module], Packable]) -> None:
        if packed is not True and packed is not False and packed != "auto":
            raise ModelError(f"HFModel: packed must be True, False or 'auto', got {shown(packed)}.")
        self._model, self._packed, self._find = model, packed, find
        self._packs: dict[Key, Pack] = {}
        self._swaps: list[tuple[dict[str, Any], Callable[..., Tensor]]] = []
        self._expected = sum(_sizes(self._packable().layers).values())

    @property
    def bytes(self) -> int:
        """Size of the packed copies; an estimate before the first run."""
        return sum(pack.bytes for pack in self._packs.values()) if self._packs else self._expected

    @torch.no_grad()
    def refresh(self) -> None:
        """Pack new and changed weights, and drop copies that are no longer needed; call it once before a run.

        Some optimizers, and writes to `weight.data`, change a weight without increasing torch's counter. So
        every weight is read once, which takes as long as decoding one token. Raises like the constructor.
        """
        self._swaps = []  # if this method fails, no stale copy is used afterwards
        layers, gelus = self._packable()
        packs: dict[Key, Pack] = {}
        for layer in layers:
            if layer.key not in packs:
                packs[layer.key] = _packed(layer, self._packs.pop(layer.key, None))
        self._packs = packs
        self._expected = 0
        min_rows = _MIN_ROWS_ON_ONE_THREAD if torch.get_num_threads() == 1 else _MIN_ROWS
        self._swaps = [
            (vars(layer.module), packed_forward(layer, packs[layer.key].content, min_rows))
            for layer in layers
        ]
        self._swaps += [(vars(module), fused_gelu(module)) for module in gelus]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Use the packed weights for products of few rows.

        Has no effect where gradients are enabled, or another precision by autocast. Several threads may enter
        at once: each removes the forwards that it has set, and a layer without one runs as usual.
        """
        is_plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        changed: list[dict[str, Any]] = []
        try:
            for attributes, forward in () if is_plain else self._swaps:
                if "forward" not in attributes:
                    changed.append(attributes)
                    attributes["forward"] = forward
            yield
        finally:
            for attributes in changed:
                attributes.pop("forward", None)

    def _packable(self) -> Packable:
        """The layers to pack and the GELUs to fuse, in the model as it is now."""
        if self._packed is False:
            return Packable([], [])
        layers, gelus = self._find(self._model)
        return Packable(self._select(layers), gelus)

    def _select(self, layers: list[LinearLayer]) -> list[LinearLayer]:
        is_available = bool(torch.backends.mkldnn.enabled) and packing_works()
        possible = [layer for layer in layers if _is_plain(layer.module)] if is_available else []
        if self._packed == "auto":
            large = [layer for layer in possible if layer.weight.numel() >= MIN_WEIGHTS]
            new = {key: size for key, size in _sizes(large).items() if key not in self._packs}
            return large if not new or sum(new.values()) <= memory_left() // 2 else []
        if not is_available:
            raise ModelError(
                "HFModel: packed=True needs oneDNN's linear layers, and torch "
                f"{torch.__version__} has none here. Use packed='auto', which then packs nothing."
            )
        if not possible:
            raise ModelError(
                f"HFModel: packed=True needs linear layers in float32 on the CPU, and "
                f"{type(self._model).__name__} has none. Use packed='auto', which then packs nothing."
            )
        return possible

    def __getstate__(self) -> dict[str, Any]:  # a copy, or another process, packs again
        return {**vars(self), "_packs": {}, "_swaps": [], "_expected": self.bytes}

    def __str__(self) -> str:
        return f"{self.bytes / 1e6:.1f} MB" if self.bytes else "no"


def packed_forward(layer: LinearLayer, content: Tensor, min_rows: int) -> Callable[..., Tensor]:
    """The forward of a layer with a packed weight, for at least `min_rows` rows.

    Its argument has the same name as in the layer's class.
    """
    module, (_, width) = layer.module, layer.weight.shape
    bias = None if module.bias is None else module.bias.detach()
    plain = type(module).forward.__get__(module)
    multiply = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001
    compiling = torch.compiler.is_compiling

    def forward(input: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows features"]:  # noqa: A002
        few = min_rows * width <= input.numel() <= MAX_ROWS * width and input.shape[-1] == width
        if few and type(input) is Tensor and input.dtype == torch.float32 and not compiling():
            product: Tensor = multiply(input, content, bias, "none", [], "")
            return product
        output: Tensor = plain(input)
        return output

    def conv1d_forward(x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows features"]:
        return forward(x)

    return conv1d_forward if layer.transposed else forward


def fused_gelu(module: Any) -> Callable[[Tensor], Tensor]:  # noqa: ANN401 - a class of transformers
    """The forward of a tanh-GELU as one operation, for float32 on the CPU.

    There it differs by rounding. In lower precisions it would differ by more, because the separate operations
    round their results.
    """
    plain = type(module).forward.__get__(module)

    def forward(input: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:  # noqa: A002 - as in the class
        if input.dtype == torch.float32 and input.device.type == "cpu":
            return nn.functional.gelu(input, approximate="tanh")
        output: Tensor = plain(input)
        return output

    return forward


def _is_plain(module: Any) -> bool:  # noqa: ANN401 - nn.Linear or Conv1D
    """True if a call multiplies with a weight that oneDNN can pack, adds the bias, and does nothing else.

    False for a layer whose forward was replaced (by a device map, say), a compiled layer, and a layer with a
    pre-forward hook, which may make the weight. Hooks that run after the forward are harmless.
    """
    replaced = "forward" in vars(module) or module._compiled_call_impl is not None  # noqa: SLF001
    if replaced or module._forward_pre_hooks:  # noqa: SLF001 - torch has no public name
        return False
    tensors = [module.weight] if module.bias is None else [module.weight, module.bias]
    return module.weight.ndim == 2 and all(  # noqa: PLR2004 - a matrix
        type(tensor) is nn.Parameter  # a quantized weight is of another class
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and tensor.numel() > 0
        for tensor in tensors
    )


def _sizes(layers: list[LinearLayer]) -> dict[Key, int]:
    """Bytes of every weight, with shared weights once."""
    return {layer.key: layer.weight.nbytes for layer in layers}


def _packed(layer: LinearLayer, old: Pack | None) -> Pack:
    """The pack of a weight: its old pack, or another model's pack, if it has not changed; else a new one."""
    stored = layer.module.weight.detach()
    version = -1 if stored.is_inference() else stored._version  # noqa: SLF001 - torch's count of changes
    digest = _digest(stored)
    for pack in (old, _held.get(layer.key)):
        if pack is not None and pack.version == version and torch.equal(pack.digest, digest):
            return pack
    content = torch.ops.mkldnn._reorder_linear_weight(layer.weight, _TYPICAL_ROWS)  # noqa: SLF001
    pack = Pack(content, version, digest, torch.ops.mkldnn._nbytes(content))  # noqa: SLF001
    _held[layer.key] = pack
    return pack


def _digest(weight: Float32[Tensor, "lines columns"]) -> Int32[Tensor, " lines"]:
    """The bits of one number per line of a weight, which changes with each of the line's numbers.

    A sum with random coefficients: a change that rounding hides here is hidden in the layer's output too. The
    function reads the weight once, at the speed of memory.
    """
    # As bits, NaN equals NaN.
    return torch.mv(weight, _coefficients(weight.shape[1])).view(torch.int32)


@cache
def _coefficients(columns: int) -> Float32[Tensor, " columns"]:
    """Fixed random numbers between 1 and 2, so that a change in any column shows."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(columns, generator=generator, dtype=torch.float32, device="cpu") + 1


@cache
def packing_works() -> bool:
    """True if this torch has the operators, and their product of small whole numbers is exact."""
    weight, rows, bias = (
        torch.tensor(numbers, dtype=torch.float32, device="cpu")
        for numbers in ([[1, 2, 3], [4, 5, 6]], [[[1, 0, 2]], [[0, 3, 1]]], [10, 20])
    )
    expected = rows @ weight.T
    try:
        content = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)  # noqa: SLF001
        size = torch.ops.mkldnn._nbytes(content)  # noqa: SLF001
        multiply = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001
        plain, biased = (multiply(rows, content, added, "none", [], "") for added in (None, bias))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return size >= weight.nbytes and torch.equal(plain, expected) and torch.equal(biased, expected + bias)
