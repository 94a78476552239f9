"""Linear layers that read their weights in the order in which oneDNN multiplies them.

Packed by oneDNN's own operators, those that torch's compiler writes where the number of rows is open: they
alone serve every number of rows with nothing compiled and the model's own layers in place. `torch.compile`
with freezing compiles for a second a layer, fixes the weights for good, and for a known number of rows takes
MKL's packing, which gains less; `torch.utils.mkldnn` copies the model, gains less and knows no `Conv1D`.
`benchmarks/packed_linear.py` measures them all. The operators are private, so one numerical test asks whether
they are there; without them nothing is packed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, final
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from decodekit.accelerate.packed_linear.activations import in_one, written_out
from decodekit.accelerate.packed_linear.layers import Key, LinearLayer, packable
from decodekit.errors import ModelError
from decodekit.accelerate.free_memory import memory_left

# Measured by benchmarks/packed_linear.py: at 256 rows the plain product is as fast.
MOST_ROWS = 64
# One row only reads the weight, which the plain product does as well, if with one thread.
_FEWEST_ROWS, _FEWEST_ROWS_OF_ONE_THREAD = 1, 2
# Calling oneDNN takes some 20 us; below 256 x 1024 weights that is more than it saves.
LEAST_WEIGHTS = 2**18
# For so many rows the blocks are laid out: those for one row serve several badly, these serve one as well.
_TYPICAL_ROWS = 8


@dataclass(frozen=True, eq=False)
class Pack:
    """A weight as oneDNN wants it, and how to tell whether it is still the same weight.

    Attributes:
        content: The packed copy, which only oneDNN can read.
        version: Of the weight that it was made from; -1 where torch does not count.
        digest: Of that weight.
        bytes: What the copy takes.
    """

    content: Tensor
    version: int
    digest: Float32[Tensor, " lines"]
    bytes: int


# The packs that are held by some `Packing`, so that two that share weights (a model, and its first layers as
# a draft) hold one copy. Nothing stays here that nobody holds.
_held: WeakValueDictionary[Key, Pack] = WeakValueDictionary()


@final
class Packing:
    """The packed copies of a model's linear layers, and the moments in which they are used.

    The model is left as it was: outside of `active` nothing of it is changed, and no attribute is added.
    A weight that several layers share is packed once. Inside, a GELU that is written out is one operation.

    Args:
        model: Any module. Plain `nn.Linear` and transformers' `Conv1D` in float32 on the CPU can be packed.
        packed: True packs all of them; `"auto"` those for which it pays, if the copies take less than half
            of the memory that is left; False none.

    Raises:
        ModelError: If `packed` is True and this torch has no such operators, or the model no such layers.
    """

    def __init__(self, model: nn.Module, packed: bool | Literal["auto"]) -> None:  # noqa: FBT001 - as HFModel takes it
        if packed is not True and packed is not False and packed != "auto":
            raise ModelError(f"HFModel: packed must be True, False or 'auto', got {packed!r:.80}.")
        self._model = model
        self._packed = packed
        self._packs: dict[Key, Pack] = {}
        self._swaps: list[tuple[dict[str, Any], Callable[..., Tensor]]] = []
        self._expected = sum(_sizes(self._layers()).values())

    @property
    def bytes(self) -> int:
        """What the packed copies take; before the first run, about what they will take."""
        return sum(pack.bytes for pack in self._packs.values()) if self._packs else self._expected

    @torch.no_grad()
    def refresh(self) -> None:
        """Packs what is new or has changed, and lets go of what is not needed; once before a run.

        Reads every weight once, which takes as long as one token does: some optimizers, and whoever writes
        to `weight.data`, change weights without a trace in torch's count of changes.

        Raises:
            ModelError: As the constructor does.
        """
        self._swaps = []  # whatever happens here, nothing old is used after
        layers = self._layers()
        packs: dict[Key, Pack] = {}
        for layer in layers:
            if layer.key not in packs:
                packs[layer.key] = _packed(layer, self._packs.pop(layer.key, None))
        self._packs = packs
        self._expected = 0
        fewest = _FEWEST_ROWS_OF_ONE_THREAD if torch.get_num_threads() == 1 else _FEWEST_ROWS
        self._swaps = [
            (vars(layer.module), _forward(layer, packs[layer.key].content, fewest)) for layer in layers
        ]
        if self._packed is not False:
            self._swaps += [(vars(module), in_one(module)) for module in written_out(self._model)]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the layers multiply few rows with their packed weights.

        Does nothing where gradients are wanted, or another precision by autocast. Several threads may be
        inside at once: each takes back what it has set, and a layer without it is a plain one.
        """
        plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        ours: list[dict[str, Any]] = []
        try:
            for attributes, forward in () if plain else self._swaps:
                if "forward" not in attributes:
                    ours.append(attributes)
                    attributes["forward"] = forward
            yield
        finally:
            for attributes in ours:
                attributes.pop("forward", None)

    def _layers(self) -> list[LinearLayer]:
        """The layers to pack, as the model is now."""
        if self._packed is False:
            return []
        possible = packable(self._model) if _available() else []
        if self._packed is True:
            self._check(possible)
            return possible
        worthwhile = [layer for layer in possible if layer.weight.numel() >= LEAST_WEIGHTS]
        new = {key: size for key, size in _sizes(worthwhile).items() if key not in self._packs}
        return worthwhile if sum(new.values()) <= memory_left() // 2 else []

    def _check(self, possible: list[LinearLayer]) -> None:
        if not _available():
            raise ModelError(
                "HFModel: packed=True must find oneDNN's linear layers in torch, and torch "
                f"{torch.__version__} has none here. Use packed='auto', which goes without."
            )
        if not possible:
            raise ModelError(
                f"HFModel: packed=True must find linear layers in float32 on the CPU, and "
                f"{type(self._model).__name__} has none. Use packed='auto', which goes without."
            )

    def __getstate__(self) -> dict[str, Any]:  # a copy, or another process, packs anew
        return {**vars(self), "_packs": {}, "_swaps": [], "_expected": self.bytes}

    def __str__(self) -> str:
        return f"{self.bytes / 1e6:.1f} MB" if self.bytes else "no"


def _sizes(layers: list[LinearLayer]) -> dict[Key, int]:
    """Bytes of every weight, shared ones once."""
    return {layer.key: layer.weight.nbytes for layer in layers}


def _packed(layer: LinearLayer, old: Pack | None) -> Pack:
    """The packed weight: the old one, or somebody else's, or a new one if the weight has changed."""
    stored = layer.module.weight.detach()
    version = -1 if stored.is_inference() else stored._version  # noqa: SLF001 - torch's count of changes
    found = _digest(stored)
    for pack in (old, _held.get(layer.key)):
        if pack is not None and pack.version == version and _same_bits(pack.digest, found):
            return pack
    content = torch.ops.mkldnn._reorder_linear_weight(layer.weight, _TYPICAL_ROWS)  # noqa: SLF001
    pack = Pack(content, version, found, torch.ops.mkldnn._nbytes(content))  # noqa: SLF001
    _held[layer.key] = pack
    return pack


def _digest(weight: Float32[Tensor, "lines columns"]) -> Float32[Tensor, " lines"]:
    """A number for every line of a weight, which changes with each of its numbers.

    A sum with random coefficients: a change that its rounding hides would be hidden in the layer's output.
    It reads the weight once, at the speed of memory.
    """
    return torch.mv(weight, _coefficients(weight.shape[1]))


@cache
def _coefficients(columns: int) -> Float32[Tensor, " columns"]:
    """Between 1 and 2, so that none hides its column; always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(columns, generator=generator, dtype=torch.float32, device="cpu") + 1


def _same_bits(one: Float32[Tensor, " lines"], other: Float32[Tensor, " lines"]) -> bool:
    """Whether they are equal, NaN and NaN too."""
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def _forward(layer: LinearLayer, content: Tensor, fewest: int) -> Callable[..., Tensor]:
    """What the layer does while its packed weight is in use, for `fewest` rows or more.

    Its argument has the name that it has in the class.
    """
    module, (_, width) = layer.module, layer.weight.shape
    bias = None if module.bias is None else module.bias.detach()
    plain = type(module).forward.__get__(module)
    multiply = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001
    compiling = torch.compiler.is_compiling

    def forward(input: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows features"]:  # noqa: A002
        few = fewest * width <= input.numel() <= MOST_ROWS * width and input.shape[-1] == width
        if few and type(input) is Tensor and input.dtype == torch.float32 and not compiling():
            product: Tensor = multiply(input, content, bias, "none", [], "")
            return product
        usual: Tensor = plain(input)
        return usual

    def conv1d_forward(x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows features"]:
        return forward(x)

    return conv1d_forward if layer.transposed else forward


def _available() -> bool:
    """Whether oneDNN may be used, and can."""
    return bool(torch.backends.mkldnn.enabled) and packing_works()


@cache
def packing_works() -> bool:
    """Whether this torch has the operators, and they multiply: small whole numbers, which are exact."""
    weight, rows, bias = (
        torch.tensor(numbers, dtype=torch.float32, device="cpu")
        for numbers in ([[1, 2, 3], [4, 5, 6]], [[[1, 0, 2]], [[0, 3, 1]]], [10, 20])
    )
    right = rows @ weight.T
    try:
        content = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)  # noqa: SLF001
        counted = torch.ops.mkldnn._nbytes(content)  # noqa: SLF001
        multiply = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001
        found = [multiply(rows, content, added, "none", [], "") for added in (None, bias)]
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return counted >= weight.nbytes and torch.equal(found[0], right) and torch.equal(found[1], right + bias)
