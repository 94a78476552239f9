"""The rows cache: what a transformers model keeps between two forward passes, one entry a row.

transformers' own cache copies all keys and values twice a step under beam search: once to reorder them,
once to append to them. Here a layer's keys and values stand in a buffer with room to spare, and only what
was generated is reordered, since the rows of one prompt share what is before it.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from jaxtyping import Int64
from torch import Tensor

from decodekit.models.hf.row_cache.buffered_layer import BufferedKeys, buffered_layer, picked
from decodekit.models.hf.trie_cache.slotted_layer import SlottedKeys, slotted_layer

# What a model's forward calls its cache: since transformers 5.24, before it, and in families of their own.
_NAMES = ("cache", "past_key_values", "cache_params", "state")


def cache_name(names: Iterable[str]) -> str | None:
    """The name that stands for a model's cache among those of arguments or fields; None: there is none."""
    found = set(names)
    return next((name for name in _NAMES if name in found), None)


class Cache:
    """A model's cache, whatever the model calls it, and how its rows are moved.

    Args:
        content: transformers' Cache, the state some families have instead, or None where the model makes
            its own.
    """

    def __init__(self, content: Any) -> None:  # noqa: ANN401
        self.content = content

    @torch.inference_mode()  # as the forward passes that the buffers come from and go to
    def widen(self, rows: Int64[Tensor, " rows"] | None, capacity: int, *, shared: int | None = None) -> None:
        """Makes row `i` what prompt `rows[i]` is, once the prompts are in; None: its rows are those it has.

        Of their columns `shared` are the same for all rows of a prompt; None: all.

        Layers of plain attention get buffers, with room up to `capacity` columns; windows, convolutions
        and recurrences stay as transformers made them.
        """
        for number, layer in enumerate(layers := self._layers):
            if type(layer).__name__ == "DynamicLayer" and layer.is_initialized:
                layers[number] = buffered_layer(cast("Any", type(layer)))(layer, rows, capacity, shared)
            elif rows is not None:
                layer.reorder_cache(rows)
        if rows is not None and not layers:
            self.reorder(rows)

    @torch.inference_mode()
    def reorder(self, rows: Int64[Tensor, " rows"]) -> None:
        """Makes row `i` what row `rows[i]` was, of the same prompt."""
        if not self._layers:
            self.content.reorder_cache(rows)  # a family's own; the probe finds out whether it can
        for layer in self._layers:
            layer.reorder_cache(rows)

    @torch.inference_mode()
    def keep(self, rows: Int64[Tensor, " kept"], first: int = 0) -> None:
        """Goes on with some rows only; where all layers have buffers, without the columns before `first`."""
        for layer in self._layers:
            if isinstance(layer, BufferedKeys):
                layer.keep(rows, first)
            elif isinstance(layer, SlottedKeys):
                layer.keep(rows)
            else:
                layer.reorder_cache(rows)

    @property
    def is_buffered(self) -> bool:
        """Whether all keys and values stand in buffers, so that another cache can be joined to it."""
        buffered = [isinstance(layer, BufferedKeys | SlottedKeys) for layer in self._layers]
        # What stayed as transformers made it is empty: such a layer looks at another's keys.
        plain = [type(layer).__name__ == "DynamicLayer" for layer in self._layers]
        return any(buffered) and all(map(any, zip(buffered, plain, strict=True)))

    @torch.inference_mode()
    def join(self, other: "Cache", shifts: tuple[int, int], columns: int, room: int) -> None:
        """Goes on with the rows of another one after its own.

        Args:
            other: The other one.
            shifts: By how much the columns of each move to the right; those that move out to the left are
                dropped.
            columns: How many there are after.
            room: In slots, how many there are; else as many columns at most, later.
        """
        for layer, another in zip(self._layers, other._layers, strict=True):  # noqa: SLF001 - of this class
            if layer.is_initialized:
                layer.join(another, shifts, columns, room)

    @torch.inference_mode()
    def drop(self, first: int, room: int) -> None:
        """Goes on without the slots before `first`, with so many in all."""
        for layer in self._layers:
            if layer.is_initialized:
                layer.drop(first, room)

    @torch.inference_mode()
    def slot(self, room: int, places: Int64[Tensor, " beams"]) -> None:
        """Gives every layer of plain attention `room` slots, once the prompts are in.

        Args:
            room: At least as many as the prompts have columns.
            places: Where new keys and values go; it is written to from outside.
        """
        for number, layer in enumerate(layers := self._layers):
            if type(layer).__name__ == "DynamicLayer" and layer.is_initialized:
                layers[number] = slotted_layer(cast("Any", type(layer)))(layer, room, places)

    @torch.inference_mode()
    def make_room(self, room: int) -> None:
        """Goes on with so many slots."""
        for layer in self._layers:
            if layer.is_initialized:
                layer.make_room(room)

    @property
    def has_layers(self) -> bool:
        """Whether it is one of transformers' own, layer by layer, and not a family's."""
        return bool(self._layers)

    @property
    def recurrent(self) -> bool:
        """Whether every layer keeps a state in place of keys and values, and has read its padding with it."""
        return bool(linear := getattr(self.content, "is_linear", [])) and all(linear)

    @property
    def columns(self) -> int:
        """How many columns it holds."""
        return int(self._plain_layers[0].keys.shape[2])

    @torch.inference_mode()
    def crop(self, first: int, last: int) -> None:
        """Keeps the columns from `first` up to `last`. Layers must be of plain attention."""
        for layer in self._plain_layers:
            layer.keys, layer.values = (tensor[:, :, first:last] for tensor in (layer.keys, layer.values))

    @torch.inference_mode()
    def gather(self, columns: Int64[Tensor, "rows kept"]) -> None:
        """Makes column `i` of every row what its column `columns[row, i]` was, likewise."""
        for layer in self._plain_layers:
            layer.keys, layer.values = (picked(tensor, columns) for tensor in (layer.keys, layer.values))

    @torch.inference_mode()
    def compact(self, columns: Int64[Tensor, "rows kept"]) -> None:
        """The same in slots; the prompt's columns come first and stay."""
        for layer in self._layers:
            if layer.is_initialized:
                layer.compact(columns)

    def pretend(self, columns: int) -> None:
        """Makes a cache of slots say that it holds so many more than it does."""
        for layer in self._layers:
            layer.pretended = columns

    @torch.inference_mode()
    def spread(self, rows: Int64[Tensor, " new_rows"], columns: Int64[Tensor, "new_rows kept"]) -> "Cache":
        """A cache of transformers' own: row `i` holds the columns `columns[i]` of row `rows[i]`."""
        from transformers import DynamicCache, EncoderDecoderCache  # noqa: PLC0415 - slow to import

        texts = DynamicCache()
        for number, layer in enumerate(self._layers):
            if layer.is_initialized:
                both = (
                    picked(tensor.index_select(0, rows), columns) for tensor in (layer.keys, layer.values)
                )
                texts.update(*both, number)
        source = getattr(self.content, "cross_attention_cache", None)
        if source is None:
            return Cache(texts)
        sources = DynamicCache()
        for number, layer in enumerate(source.layers):
            sources.update(layer.keys.index_select(0, rows), layer.values.index_select(0, rows), number)
        return Cache(EncoderDecoderCache(texts, sources))

    @property
    def _plain_layers(self) -> list[Any]:
        layers = [layer for layer in self._layers if layer.is_initialized]  # some share another's keys
        if not layers or any(type(layer).__name__ != "DynamicLayer" for layer in layers):
            raise TypeError("Columns can be moved in a cache of plain attention only.")
        return layers

    @property
    def _layers(self) -> list[Any]:
        # What a decoder has read of its source is the same on all rows of a prompt, and stays.
        growing = getattr(self.content, "self_attention_cache", self.content)
        layers: list[Any] = getattr(growing, "layers", [])
        return layers
