"""The cache of a transformers model between two forward passes.

transformers' own cache copies all keys and values twice per step of beam search: once to reorder them, once
to append to them. Here the keys and values of a layer are in a preallocated buffer, with one entry per row or
per prompt, and a reorder moves only generated columns, or only a mask.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from jaxtyping import Int64
from torch import Tensor

from decodekit.models.hf.cache_layers import BufferedLayer, SlottedLayer, gather_columns, layer_class

# Names of the cache in a model's forward: since transformers 5.24, before it, and of some families.
_NAMES = ("cache", "past_key_values", "cache_params", "state")


def cache_name(names: Iterable[str]) -> str | None:
    """The name of the cache among arguments or fields; None if there is none."""
    found = set(names)
    return next((name for name in _NAMES if name in found), None)


class Cache:
    """A model's cache, of any kind, with the operations that move its rows.

    Args:
        content: transformers' Cache, or the state that some families have instead; None if the model makes
            its own.
    """

    def __init__(self, content: Any) -> None:  # noqa: ANN401
        self.content = content

    @torch.inference_mode()  # as the forward passes that the buffers come from and go to
    def widen(self, rows: Int64[Tensor, " rows"] | None, capacity: int, *, shared: int | None = None) -> None:
        """Make row `i` a copy of prompt `rows[i]`, after the prompts were read.

        Layers of plain attention get buffers of up to `capacity` columns. Windows, convolutions and
        recurrences stay as transformers made them.

        Args:
            rows: The prompt of each row; None keeps the rows that exist.
            capacity: The largest number of columns.
            shared: Number of columns that are equal on all rows of a prompt; None for all columns.
        """
        for number, layer in enumerate(layers := self._layers):
            if _is_plain(layer) and layer.is_initialized:
                layers[number] = layer_class(BufferedLayer, cast("Any", type(layer)))(
                    layer, rows, capacity, shared
                )
            elif rows is not None:
                layer.reorder_cache(rows)
        if rows is not None and not layers:
            self.reorder(rows)

    @torch.inference_mode()
    def reorder(self, rows: Int64[Tensor, " rows"]) -> None:
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
        # A layer of transformers is left only where it is empty, because the layer reads another's keys.
        return any(buffered) and all(map(any, zip(buffered, map(_is_plain, self._layers), strict=True)))

    @torch.inference_mode()
    def merge(self, other: "Cache", shifts: tuple[int, int], columns: int, room: int) -> None:
        """Append the rows of another cache.

        Each cache moves to the right by its shift, to `columns` columns in all. Columns that leave on the
        left are dropped. There are `room` slots afterwards; for rows, `room` is the largest number of columns
        later on.
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
                layers[number] = layer_class(SlottedLayer, cast("Any", type(layer)))(layer, room, new_slots)

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
        """Report `columns` more slots than there are, to test if a model reads the cache's length."""
        for layer in self._layers:
            layer.pretended = columns

    @property
    def has_layers(self) -> bool:
        """True for a cache of transformers with layers, False for a family's own state."""
        return bool(self._layers)

    @property
    def recurrent(self) -> bool:
        """True if every layer keeps a state in place of keys and values. The state includes the padding."""
        return bool(linear := getattr(self.content, "is_linear", [])) and all(linear)

    @property
    def columns(self) -> int:
        """Number of columns."""
        return int(self._plain_layers[0].keys.shape[2])

    @torch.inference_mode()
    def crop(self, first: int, last: int) -> None:
        """Keep the columns from `first` up to `last`. All layers must be of plain attention."""
        for layer in self._plain_layers:
            layer.keys, layer.values = (tensor[:, :, first:last] for tensor in (layer.keys, layer.values))

    @torch.inference_mode()
    def gather(self, columns: Int64[Tensor, "rows kept"]) -> None:
        """Make column `i` of every row its former column `columns[row, i]`. The same layers are needed."""
        for layer in self._plain_layers:
            layer.keys, layer.values = (
                gather_columns(tensor, columns) for tensor in (layer.keys, layer.values)
            )

    @torch.inference_mode()
    def to_rows(self, prompts: Int64[Tensor, " rows"], columns: Int64[Tensor, "rows kept"]) -> "Cache":
        """A cache of transformers' own, with the columns `columns[i]` of prompt `prompts[i]` in row `i`."""
        from transformers import DynamicCache, EncoderDecoderCache  # noqa: PLC0415 - slow to import

        rows = DynamicCache()
        for number, layer in enumerate(self._layers):
            if layer.is_initialized:
                tensors = (tensor.index_select(0, prompts) for tensor in (layer.keys, layer.values))
                rows.update(*(gather_columns(tensor, columns) for tensor in tensors), number)
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


def _is_plain(layer: Any) -> bool:  # noqa: ANN401 - of transformers
    """True for transformers' layer of attention without a window, before it has got buffers."""
    return type(layer).__name__ == "DynamicLayer"
