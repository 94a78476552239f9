"""Keys and values of one layer, in buffers with room to spare."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor, nn

# Columns of room made with the prompt; a buffer that is full is doubled.
_ROOM = 128


class BufferedKeys:
    """Keys and values `[rows, heads, columns, width]`, appended in place; only what was generated moves.

    Args:
        prompts: The layer of transformers' cache that holds the prompts.
        rows: The prompt of each row; None: one row a prompt.
        capacity: Columns at most.
        shared: How many of the columns are the same for all rows of a prompt; None: all that there are.
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
            twice = self.prompt_length + 2 * (after - self.prompt_length)
            columns = max(after, min(self._capacity, twice))
            self._buffers = _buffers(self._buffers, None, columns)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._length : after] = new
        self._length = after
        return self._show()

    def reorder_cache(self, beam_idx: Int64[Tensor, " rows"]) -> None:
        """Moves what was generated; what came before is the same on all rows of a prompt."""
        _reorder([buffer[:, :, self.prompt_length : self._length] for buffer in self._buffers], beam_idx)

    def keep(self, rows: Int64[Tensor, " kept"], first: int = 0) -> None:
        """Goes on with some rows, and without the columns before `first`, in buffers of the same room."""
        columns = self._buffers[0].shape[-2]
        some = (tensor[:, :, first:] for tensor in (self.keys, self.values))
        self._buffers = _buffers(some, rows, columns - first)
        self._length -= first
        self.prompt_length = max(self.prompt_length - first, 0)
        self._show()

    def join(self, other: "BufferedKeys", shifts: tuple[int, int], columns: int, room: int) -> None:
        """Goes on with the rows of another layer after its own: see `Cache.join`."""
        mine, theirs = shifts
        now = max(columns, min(room, columns + _ROOM))
        self._buffers = [
            torch.cat([moved(one, mine, now), moved(another, theirs, now)])
            for one, another in ((self.keys, other.keys), (self.values, other.values))
        ]
        self._length, self._capacity = columns, room
        self.prompt_length = max(min(self.prompt_length + mine, other.prompt_length + theirs), 0)
        self._show()

    def get_seq_length(self) -> int:
        """How many columns there are, as models are told."""
        return self._length

    def _show(self) -> tuple[Tensor, Tensor]:
        # What the base class reads lengths from, and others keys and values.
        self.keys, self.values = (buffer[:, :, : self._length] for buffer in self._buffers)
        return self.keys, self.values


@cache
def buffered_layer(base: Any) -> Any:  # noqa: ANN401 - a class of transformers, and one derived from it
    """A cache layer of transformers in such buffers.

    Made from its base class at run time, because transformers is imported only where it is needed.
    """
    return type("BufferedLayer", (BufferedKeys, base), {})


def _buffers(tensors: Iterable[Tensor], rows: Int64[Tensor, " rows"] | None, columns: int) -> list[Tensor]:
    return [_with_room(tensor, rows, columns) for tensor in tensors]


def moved(
    tensor: Shaped[Tensor, "rows heads columns width"], shift: int, columns: int
) -> Shaped[Tensor, "rows heads more width"]:
    """The tensor with its columns further to the right, and so many of them; zeros in the others."""
    # Zeros, because what nobody sees is multiplied by 0, and what is not a number would stay so.
    return nn.functional.pad(tensor, (0, 0, shift, columns - shift - tensor.shape[2]))


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


def picked(
    tensor: Shaped[Tensor, "rows heads columns width"], columns: Int64[Tensor, "rows kept"]
) -> Shaped[Tensor, "rows heads kept width"]:
    """Column `i` of every row is its column `columns[row, i]`."""
    heads, width = tensor.shape[1], tensor.shape[3]
    return tensor.gather(2, columns[:, None, :, None].expand(-1, heads, -1, width))
