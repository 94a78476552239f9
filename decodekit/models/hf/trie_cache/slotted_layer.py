"""Keys and values of one layer in slots: a step writes some places of buffers of a fixed size."""

from functools import cache
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from decodekit.models.hf.row_cache.buffered_layer import moved, picked


class SlottedKeys:
    """Keys and values `[batch, heads, room, width]`; attention sees all of them, a mask says which count.

    No shape changes from step to step, so that a step can be recorded. Empty slots hold zeros, because what
    a mask hides must be numbers.

    Args:
        prompts: The layer of transformers' cache that holds the prompts.
        room: Slots in all.
        places: The slots that the next tokens go to; written to from outside.
    """

    def __init__(
        self,
        prompts: Any,  # noqa: ANN401 - a class of transformers
        room: int,
        places: Int64[Tensor, " beams"],
    ) -> None:
        super().__init__()
        self.dtype, self.device = prompts.keys.dtype, prompts.keys.device
        self.is_initialized = True
        self.prompt_length = int(prompts.keys.shape[-2])
        self.pretended: int = 0
        self._places = places
        self._show([moved(tensor, 0, room) for tensor in (prompts.keys, prompts.values)])

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *_: Any,  # noqa: ANN401 - the base class's signature
        **__: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        """Writes new keys and values to their places; returns all slots."""
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer.index_copy_(2, self._places, new)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """How many slots there are beside the next tokens', as models are told."""
        return int(self.keys.shape[-2]) - len(self._places) + self.pretended

    def keep(self, prompts: Int64[Tensor, " kept"]) -> None:
        """Goes on with some prompts."""
        self._show([buffer.index_select(0, prompts) for buffer in self._buffers])

    def join(self, other: "SlottedKeys", shifts: tuple[int, int], columns: int, room: int) -> None:
        """Goes on with the prompts of another layer after its own: see `Cache.join`."""
        del columns  # a mask says which slots count
        both = ((self, shifts[0]), (other, shifts[1]))
        keys = torch.cat([moved(layer.keys, shift, room) for layer, shift in both])
        values = torch.cat([moved(layer.values, shift, room) for layer, shift in both])
        self.prompt_length += shifts[0]
        self._show([keys, values])

    def drop(self, first: int, room: int) -> None:
        """Goes on without the first slots, with so many in all."""
        self.prompt_length -= first
        self._show([moved(buffer, -first, room) for buffer in self._buffers])

    def compact(self, slots: Int64[Tensor, "batch kept"]) -> None:
        """Keeps some slots of every prompt, those of its text first and in their places."""
        branched = slots[:, self.prompt_length :]
        for buffer in self._buffers:
            buffer[:, :, self.prompt_length : slots.shape[1]] = picked(buffer, branched)

    def make_room(self, room: int) -> None:
        """Goes on with so many slots, at least as many as there are."""
        self._show([moved(buffer, 0, room) for buffer in self._buffers])

    def _show(self, buffers: list[Tensor]) -> None:
        self._buffers = buffers
        self.keys, self.values = buffers  # what others read


@cache
def slotted_layer(base: Any) -> Any:  # noqa: ANN401 - a class of transformers, and one derived from it
    """A cache layer of transformers in slots.

    Made from its base class at run time, because transformers is imported only where it is needed.
    """
    return type("SlottedLayer", (SlottedKeys, base), {})
