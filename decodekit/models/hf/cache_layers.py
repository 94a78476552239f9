"""Cache layers: keys and values of one attention layer in preallocated buffers."""

from functools import cache
from typing import Any

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor, nn

# Columns that are allocated beside the prompt's; a full buffer is doubled.
_ROOM = 128


class BufferedLayer:
    """Keys and values `[rows, heads, columns, width]`, appended in place.

    A reorder moves only the generated columns.

    Args:
        prompts: The layer of transformers' cache that holds the prompts.
        rows: The prompt of each row; None for one row per prompt.
        capacity: The largest number of columns.
        shared: Number of columns that are equal on all rows of a prompt; None for all columns.
    """

    def __init__(
        self,
        prompts: Any,  # noqa: ANN401 - a class of transformers
        rows: Int64[Tensor, " rows"] | None,
        capacity: int,
        shared: int | None,
    ) -> None:
        super().__init__()
        self.dtype, self.device = prompts.keys.dtype, prompts.keys.device
        self.is_initialized = True
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

    def reorder_cache(self, beam_idx: Int64[Tensor, " rows"]) -> None:
        """Reorder the generated columns; those before are equal on all rows of a prompt."""
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
        """The number of columns, as models ask for it."""
        return self._length

    def _publish(self) -> tuple[Tensor, Tensor]:
        """Set the attributes that transformers reads keys, values and lengths from."""
        self.keys, self.values = (buffer[:, :, : self._length] for buffer in self._buffers)
        return self.keys, self.values


class SlottedLayer:
    """Keys and values `[batch, heads, room, width]`, written to given slots.

    Attention reads all slots, and a mask hides the unused ones. No shape changes from step to step, so a step
    can be recorded. Empty slots hold zeros, because masked values must be numbers.

    Args:
        prompts: The layer of transformers' cache that holds the prompts.
        room: Number of slots.
        new_slots: The slots that the next tokens go to; the caller updates it in place.
    """

    def __init__(self, prompts: Any, room: int, new_slots: Int64[Tensor, " beams"]) -> None:  # noqa: ANN401
        super().__init__()
        self.dtype, self.device = prompts.keys.dtype, prompts.keys.device
        self.is_initialized = True
        self.prompt_length = int(prompts.keys.shape[-2])
        self.pretended: int = 0
        self._new_slots = new_slots
        self._publish([shifted(tensor, 0, room) for tensor in (prompts.keys, prompts.values)])

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values to their slots; returns all slots."""
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer.index_copy_(2, self._new_slots, new)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """The number of slots beside the next tokens', as models ask for it."""
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
            buffer[:, :, self.prompt_length : slots.shape[1]] = gather_columns(buffer, generated)

    def resize(self, room: int, first: int = 0) -> None:
        """Continue with `room` slots, without those before `first`."""
        self.prompt_length -= first
        self._publish([shifted(buffer, -first, room) for buffer in self._buffers])

    def _publish(self, buffers: list[Tensor]) -> None:
        """Set the attributes that transformers reads keys and values from."""
        self._buffers = buffers
        self.keys, self.values = buffers


@cache
def layer_class(mixin: type[BufferedLayer | SlottedLayer], base: type) -> Any:  # noqa: ANN401 - of transformers
    """The class of such a layer, derived from a cache layer of transformers.

    It is made at run time, because transformers is imported only where it is needed.
    """
    return type(mixin.__name__, (mixin, base), {})


def shifted(
    tensor: Shaped[Tensor, "rows heads columns width"], shift: int, columns: int
) -> Shaped[Tensor, "rows heads more width"]:
    """The tensor with its columns moved to the right by `shift`, padded with zeros to `columns` columns."""
    # Zeros: masked values are multiplied by 0, and a NaN would remain one.
    return nn.functional.pad(tensor, (0, 0, shift, columns - shift - tensor.shape[2]))


def gather_columns(
    tensor: Shaped[Tensor, "rows heads columns width"], columns: Int64[Tensor, "rows kept"]
) -> Shaped[Tensor, "rows heads kept width"]:
    """Column `i` of every row is its column `columns[row, i]`."""
    heads, width = tensor.shape[1], tensor.shape[3]
    return tensor.gather(2, columns[:, None, :, None].expand(-1, heads, -1, width))


def _concatenated(layers: tuple[Any, Any], shifts: tuple[int, int], columns: int) -> list[Tensor]:
    """Keys and values of the rows of two layers, with shifted columns."""
    keys, values = ([layer.keys for layer in layers], [layer.values for layer in layers])
    return [torch.cat(list(map(shifted, tensors, shifts, (columns, columns)))) for tensors in (keys, values)]


def _allocate(
    tensor: Shaped[Tensor, "rows heads columns width"],
    rows: Int64[Tensor, " new_rows"] | None,
    columns: int,
) -> Shaped[Tensor, "new_rows heads more width"]:
    """A buffer of `columns` columns that begins with the tensor's rows: all, or the given ones."""
    heads, length, width = tensor.shape[1:]
    buffer = tensor.new_empty((len(tensor) if rows is None else len(rows), heads, columns, width))
    buffer[:, :, :length] = tensor if rows is None else tensor.index_select(0, rows)
    return buffer
