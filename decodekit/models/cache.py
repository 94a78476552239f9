"""The rows cache: what a transformers model keeps between two forward passes, one entry a row.

transformers' own cache copies all keys and values twice a step under beam search: once to reorder them,
once to append to them. Here a layer's keys and values stand in a buffer with room to spare, and only what
was generated is reordered, since the rows of one prompt share what is before it.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any, cast

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

# Columns of room made with the prompt; a buffer that is full is doubled.
_ROOM = 128

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
    def widen(self, rows: Int64[Tensor, " rows"] | None, capacity: int) -> None:
        """Makes row `i` what prompt `rows[i]` is, once the prompts are in; None: one row a prompt.

        Layers of plain attention get buffers, with room up to `capacity` columns; windows, convolutions
        and recurrences stay as transformers made them.
        """
        for number, layer in enumerate(layers := self._layers):
            if type(layer).__name__ == "DynamicLayer" and layer.is_initialized:
                layers[number] = _buffered_layer(cast("Any", type(layer)))(layer, rows, capacity)
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
    def keep(self, rows: Int64[Tensor, " kept"]) -> None:
        """Goes on with some rows only."""
        for layer in self._layers:
            if (keep := getattr(layer, "keep", None)) is not None:
                keep(rows)
            else:
                layer.reorder_cache(rows)

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

        def picked(tensor: Shaped[Tensor, "rows heads columns width"]) -> Tensor:
            heads, width = tensor.shape[1], tensor.shape[3]
            return tensor.gather(2, columns[:, None, :, None].expand(-1, heads, -1, width))

        for layer in self._plain_layers:
            layer.keys, layer.values = picked(layer.keys), picked(layer.values)

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


@cache
def _buffered_layer(base: Any) -> Any:  # noqa: ANN401 - a class of transformers, and one derived from it
    """A cache layer of transformers that appends in place and reorders only what was generated.

    Made from its base class at run time, because transformers is imported only where it is needed.
    """

    class BufferedLayer(base):  # type: ignore[misc]
        """Keys and values `[rows, heads, columns, width]`, in buffers with room to spare."""

        def __init__(self, prompts: Any, rows: Int64[Tensor, " rows"] | None, capacity: int) -> None:  # noqa: ANN401
            base.__init__(self)
            self.dtype, self.device = prompts.keys.dtype, prompts.keys.device
            self.is_initialized = True
            self.prompt_length = prompts.keys.shape[-2]
            self._capacity = capacity
            self._length = self.prompt_length
            columns = min(capacity, self.prompt_length + _ROOM)
            self._buffers = _buffers((prompts.keys, prompts.values), rows, columns)
            self._show()

        def update(
            self,
            key_states: Tensor,
            value_states: Tensor,
            *_: Any,  # noqa: ANN401 - the base class's signature
            **__: Any,  # noqa: ANN401
        ) -> tuple[Tensor, Tensor]:
            """Appends new keys and values; returns all of them."""
            after = self._length + key_states.shape[-2]
            if after > self._buffers[0].shape[-2]:
                columns = max(after, min(self._capacity, 2 * after))
                self._buffers = _buffers(self._buffers, None, columns)
            for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
                buffer[:, :, self._length : after] = new
            self._length = after
            return self._show()

        def reorder_cache(self, beam_idx: Int64[Tensor, " rows"]) -> None:
            """Moves what was generated; what came before is the same on all rows of a prompt."""
            _reorder([buffer[:, :, self.prompt_length : self._length] for buffer in self._buffers], beam_idx)

        def keep(self, rows: Int64[Tensor, " kept"]) -> None:
            """Goes on with some rows, in buffers of the same columns."""
            columns = self._buffers[0].shape[-2]
            self._buffers = _buffers((self.keys, self.values), rows, columns)
            self._show()

        def _show(self) -> tuple[Tensor, Tensor]:
            # What the base class reads lengths from, and others keys and values.
            self.keys, self.values = (buffer[:, :, : self._length] for buffer in self._buffers)
            return self.keys, self.values

    return BufferedLayer


def _buffers(tensors: Iterable[Tensor], rows: Int64[Tensor, " rows"] | None, columns: int) -> list[Tensor]:
    return [_with_room(tensor, rows, columns) for tensor in tensors]


def _reorder(tensors: Iterable[Tensor], rows: Int64[Tensor, " rows"]) -> None:
    for tensor in tensors:
        tensor.copy_(tensor.index_select(0, rows))


def _with_room(
    tensor: Shaped[Tensor, "rows heads columns width"],
    rows: Int64[Tensor, " new_rows"] | None,
    columns: int,
) -> Shaped[Tensor, "new_rows heads more width"]:
    """The tensor's rows (all, or those picked), with space up to `columns`."""
    heads, length, width = tensor.shape[1:]
    buffer = tensor.new_empty((len(tensor) if rows is None else len(rows), heads, columns, width))
    buffer[:, :, :length] = tensor if rows is None else tensor.index_select(0, rows)
    return buffer
