"""The cache of a transformers model between two forward passes.

transformers' own cache copies all keys and values twice per step of beam search: once to reorder them, once
to append to them. Here the keys and values of a layer are in a preallocated buffer, with one entry per row or
per prompt, and a reorder moves only generated columns, or only a mask.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor, nn

from decodekit.models.protocols import PerRow

# Names of the cache in a model's forward: since transformers 5.24, before it, and of some families.
_NAMES = ("cache", "past_key_values", "cache_params", "state")
# Columns that are allocated after the prompt; a full buffer is doubled.
_ROOM = 128


def cache_name(names: Iterable[str]) -> str | None:
    """The name of the cache among arguments or fields; None if there is none."""
    found = set(names)
    return next((name for name in _NAMES if name in found), None)


class Cache:
    """A model's cache, of any kind, with the operations that move its rows.

    The content is transformers' Cache, or the state object of a family; None if the model creates its own.
    """

    def __init__(self, content: Any) -> None:
        self.content = content

    @torch.inference_mode()  # like the forward passes, which create and read the buffers
    def widen(self, rows: PerRow | None, capacity: int, *, shared: int | None = None) -> None:
        """Make row `i` a copy of prompt `rows[i]` (None: keep the rows), after the prompts were read.

        Layers of plain attention get buffers of up to `capacity` columns, of which the first `shared` (None:
        all) are equal on all rows of a prompt. Windows, convolutions and recurrences are not buffered.
        """
        for number, layer in enumerate(layers := self._layers):
            if _is_plain(layer) and layer.is_initialized:
                layers[number] = _layer_class(BufferedLayer, layer.__class__)(layer, rows, capacity, shared)
            elif rows is not None:
                layer.reorder_cache(rows)
        if rows is not None and not layers:
            self.reorder(rows)

    @torch.inference_mode()
    def reorder(self, rows: PerRow) -> None:
        """Make row `i` the former row `rows[i]`, of the same prompt."""
        if not self._layers:
            self.content.reorder_cache(rows)  # a family's own; a probe tests if it can
        for layer in self._layers:
            layer.reorder_cache(rows)

    @torch.inference_mode()
    def select(self, rows: Int64[Tensor, " kept"], first: int = 0) -> None:
        """Keep some rows; if all layers are `BufferedLayer`s, without the columns before `first`."""
        for layer in self._layers:
            if isinstance(layer, BufferedLayer):
                layer.select(rows, first)
            else:
                layer.reorder_cache(rows)

    @property
    def is_buffered(self) -> bool:
        """True if all keys and values are in buffers, so that another cache can be merged into this one."""
        buffered = [isinstance(layer, BufferedLayer | SlottedLayer) for layer in self._layers]
        # A layer without a buffer is empty, because it reads the keys of another layer.
        return any(buffered) and all(map(any, zip(buffered, map(_is_plain, self._layers), strict=True)))

    @torch.inference_mode()
    def merge(self, other: "Cache", shifts: tuple[int, int], columns: int, room: int) -> None:
        """Append the rows of another cache.

        Shifts each cache to the right, to `columns` columns in total; columns that leave the range are
        dropped. Then there are `room` slots; for rows, `room` is the maximum number of columns.
        """
        for layer, another in zip(self._layers, other._layers, strict=True):  # noqa: SLF001 - of this class
            if layer.is_initialized:
                layer.merge(another, shifts, columns, room)

    @torch.inference_mode()
    def to_slots(self, room: int, new_slots: Int64[Tensor, " beams"]) -> None:
        """Give every layer of plain attention `room` slots, after the prompts were read.

        New keys and values go to `new_slots`, which the caller updates in place.
        """
        for number, layer in enumerate(layers := self._layers):
            if _is_plain(layer) and layer.is_initialized:
                layers[number] = _layer_class(SlottedLayer, layer.__class__)(layer, room, new_slots)

    @torch.inference_mode()
    def resize(self, room: int, first: int = 0) -> None:
        """Continue with `room` slots, without those before `first`."""
        for layer in self._used_layers:
            layer.resize(room, first)

    @torch.inference_mode()
    def compact(self, slots: Int64[Tensor, "rows kept"]) -> None:
        """Make slot `i` of every prompt its former slot `slots[prompt, i]`; the prompt's columns stay."""
        for layer in self._used_layers:
            layer.compact(slots)

    def pretend(self, columns: int) -> None:
        """Overstate the number of slots by `columns`, to test if a model reads the cache's length."""
        for layer in self._layers:
            layer.pretended = columns

    @property
    def has_layers(self) -> bool:
        """True for a cache of transformers with layers, False for the state object of a family."""
        return bool(self._layers)

    @property
    def recurrent(self) -> bool:
        """True if every layer keeps a state in place of keys and values. The state has read the padding."""
        return bool(linear := getattr(self.content, "is_linear", [])) and all(linear)

    @property
    def columns(self) -> int:
        """Number of columns."""
        return int(self._plain_layers[0].keys.shape[2])

    @torch.inference_mode()
    def crop(self, first: int, last: int) -> None:
        """Keep the columns from `first` up to `last`. All layers must be of plain attention."""
        for layer in self._plain_layers:
            layer.keys, layer.values = (one[:, :, first:last] for one in (layer.keys, layer.values))

    @torch.inference_mode()
    def gather(self, columns: Int64[Tensor, "rows kept"]) -> None:
        """Make column `i` of every row its former column `columns[row, i]`. The same layers are needed."""
        for layer in self._plain_layers:
            layer.keys, layer.values = (_gather_columns(one, columns) for one in (layer.keys, layer.values))

    @torch.inference_mode()
    def to_rows(self, prompts: PerRow, columns: Int64[Tensor, "rows kept"]) -> "Cache":
        """A cache of transformers' own, with the columns `columns[i]` of prompt `prompts[i]` in row `i`."""
        from transformers import DynamicCache, EncoderDecoderCache  # noqa: PLC0415 - slow to import

        rows = DynamicCache()
        for number, layer in enumerate(self._layers):
            if layer.is_initialized:
                tensors = (tensor.index_select(0, prompts) for tensor in (layer.keys, layer.values))
                rows.update(*(_gather_columns(tensor, columns) for tensor in tensors), number)
        source = getattr(self.content, "cross_attention_cache", None)
        if source is None:
            return Cache(rows)
        sources = DynamicCache()
        for number, layer in enumerate(source.layers):
            sources.update(layer.keys.index_select(0, prompts), layer.values.index_select(0, prompts), number)
        return Cache(EncoderDecoderCache(rows, sources))

    @property
    def _layers(self) -> list[Any]:
        # The keys and values of an encoder's source are equal on all rows of a prompt, and stay.
        content = getattr(self.content, "self_attention_cache", self.content)
        layers: list[Any] = getattr(content, "layers", [])
        return layers

    @property
    def _used_layers(self) -> list[Any]:
        return [layer for layer in self._layers if layer.is_initialized]  # some read another layer's keys

    @property
    def _plain_layers(self) -> list[Any]:
        layers = self._used_layers
        if not layers or not all(map(_is_plain, layers)):
            raise TypeError("Columns can be moved in a cache of plain attention only.")
        return layers


class BufferedLayer:
    """Keys and values `[rows, heads, columns, width]`, appended in place.

    A reorder moves only the generated columns. `rows` is the prompt of each row, None for one row per prompt;
    the first `shared` columns (None: all) are equal on all rows of a prompt.
    """

    def __init__(self, prompts: Any, rows: PerRow | None, capacity: int, shared: int | None) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = prompts.keys.dtype, prompts.keys.device, True
        self._length = int(prompts.keys.shape[-2])
        self.prompt_length = self._length if shared is None else shared
        self._capacity = capacity
        columns = min(capacity, self._length + _ROOM)
        self._buffers = [_allocate(tensor, rows, columns) for tensor in (prompts.keys, prompts.values)]
        self._publish()

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Append new keys and values; returns all of them."""
        length = self._length + key_states.shape[-2]
        if length > self._buffers[0].shape[-2]:
            doubled = self.prompt_length + 2 * (length - self.prompt_length)
            columns = max(length, min(self._capacity, doubled))
            self._buffers = [_allocate(buffer, None, columns) for buffer in self._buffers]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._length : length] = new
        self._length = length
        return self._publish()

    def reorder_cache(self, beam_idx: PerRow) -> None:
        """Reorder the generated columns; earlier columns are equal on all rows of a prompt."""
        for buffer in self._buffers:
            generated = buffer[:, :, self.prompt_length : self._length]
            generated.copy_(generated.index_select(0, beam_idx))

    def select(self, rows: Int64[Tensor, " kept"], first: int = 0) -> None:
        """Keep some rows, without the columns before `first`, in buffers with the same free space."""
        columns = self._buffers[0].shape[-2] - first
        tensors = (tensor[:, :, first:] for tensor in (self.keys, self.values))
        self._buffers = [_allocate(tensor, rows, columns) for tensor in tensors]
        self._length -= first
        self.prompt_length = max(self.prompt_length - first, 0)
        self._publish()

    def merge(self, other: "BufferedLayer", shifts: tuple[int, int], columns: int, room: int) -> None:
        """Append the rows of another layer: see `Cache.merge`."""
        allocated = max(columns, min(room, columns + _ROOM))
        self._buffers = _concatenated((self, other), shifts, allocated)
        self._length, self._capacity = columns, room
        lengths = (layer.prompt_length + shift for layer, shift in zip((self, other), shifts, strict=True))
        self.prompt_length = max(min(lengths), 0)
        self._publish()

    def get_seq_length(self) -> int:
        """The number of columns, under the name that models call."""
        return self._length

    def _publish(self) -> tuple[Tensor, Tensor]:
        """Set the attributes that transformers reads keys, values and lengths from."""
        self.keys, self.values = (buffer[:, :, : self._length] for buffer in self._buffers)
        return self.keys, self.values


class SlottedLayer:
    """Keys and values `[batch, heads, room, width]`, written to given slots.

    Attention reads all slots, and a mask hides the unused ones. No shape changes from step to step, so a step
    can be recorded. Empty slots hold zeros, because masked values must be numbers.
    """

    def __init__(self, prompts: Any, room: int, new_slots: Int64[Tensor, " beams"]) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = prompts.keys.dtype, prompts.keys.device, True
        self.prompt_length = int(prompts.keys.shape[-2])
        self.pretended: int = 0
        self._new_slots = new_slots
        self._publish([_shifted(tensor, 0, room) for tensor in (prompts.keys, prompts.values)])

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values to their slots; returns all slots."""
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer.index_copy_(2, self._new_slots, new)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """The number of slots without the next tokens', under the name that models call."""
        return int(self.keys.shape[-2]) - len(self._new_slots) + self.pretended

    def reorder_cache(self, beam_idx: Int64[Tensor, " kept"]) -> None:
        """Keep some prompts; a reorder of a prompt's beams moves only a mask."""
        self._publish([buffer.index_select(0, beam_idx) for buffer in self._buffers])

    def merge(self, other: "SlottedLayer", shifts: tuple[int, int], columns: int, room: int) -> None:
        """Append the prompts of another layer: see `Cache.merge`."""
        del columns  # a mask hides unused slots
        self.prompt_length += shifts[0]
        self._publish(_concatenated((self, other), shifts, room))

    def compact(self, slots: Int64[Tensor, "batch kept"]) -> None:
        """Keep some slots of every prompt; the prompt's own come first and stay in place."""
        generated = slots[:, self.prompt_length :]
        for buffer in self._buffers:
            buffer[:, :, self.prompt_length : slots.shape[1]] = _gather_columns(buffer, generated)

    def resize(self, room: int, first: int = 0) -> None:
        """Continue with `room` slots, without those before `first`."""
        self.prompt_length -= first
        self._publish([_shifted(buffer, -first, room) for buffer in self._buffers])

    def _publish(self, buffers: list[Tensor]) -> None:
        """Set the attributes that transformers reads keys and values from."""
        self._buffers = buffers
        self.keys, self.values = buffers


def _is_plain(layer: Any) -> bool:
    """True for transformers' layer of attention without a window, before it has got buffers."""
    return type(layer).__name__ == "DynamicLayer"


@cache
def _layer_class(mixin: type[BufferedLayer | SlottedLayer], base: type) -> Any:
    """A class of layers derived from one of transformers, imported only when needed."""
    return type(mixin.__name__, (mixin, base), {})


def _shifted(
    tensor: Shaped[Tensor, "rows heads columns width"], shift: int, columns: int
) -> Shaped[Tensor, "rows heads more width"]:
    """The tensor with its columns moved to the right by `shift`, padded with zeros to `columns` columns."""
    # Zeros: masked values are multiplied by 0, which leaves NaN as it is.
    return nn.functional.pad(tensor, (0, 0, shift, columns - shift - tensor.shape[2]))


def _gather_columns(
    tensor: Shaped[Tensor, "rows heads columns width"], columns: Int64[Tensor, "rows kept"]
) -> Shaped[Tensor, "rows heads kept width"]:
    """Column `i` of every row is its column `columns[row, i]`."""
    heads, width = tensor.shape[1], tensor.shape[3]
    return tensor.gather(2, columns[:, None, :, None].expand(-1, heads, -1, width))


def _concatenated(layers: tuple[Any, Any], shifts: tuple[int, int], columns: int) -> list[Tensor]:
    """Keys and values of the rows of two layers, with shifted columns."""
    keys, values = ([layer.keys for layer in layers], [layer.values for layer in layers])
    return [torch.cat(list(map(_shifted, tensors, shifts, (columns, columns)))) for tensors in (keys, values)]


def _allocate(
    tensor: Shaped[Tensor, "rows heads columns width"], rows: Int64[Tensor, " new_rows"] | None, columns: int
) -> Shaped[Tensor, "new_rows heads more width"]:
    """A buffer of `columns` columns that begins with the tensor's rows: all, or the given ones."""
    heads, length, width = tensor.shape[1:]
    buffer = tensor.new_empty((len(tensor) if rows is None else len(rows), heads, columns, width))
    buffer[:, :, :length] = tensor if rows is None else tensor.index_select(0, rows)
    return buffer
