"""Masks over the slots of a trie: the keys that each beam sees."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from decodekit.models.protocols import Columns, Ids, PerRow

# Steps of new slots between two counts of live slots, which read the device.
_STEPS_BETWEEN_COUNTS = 16
# Steps and slots to allocate at least: attention reads free slots, but an allocation costs time too.
_STEPS_OF_ROOM, _MIN_ROOM = 32, 64
_ALIGNMENT = 16  # slots; attention with a mask wants aligned rows of memory
# Slots read per visible slot above which one entry per row is faster on the CPU, measured with 5 and 8 beams.
_SPARSE = 3

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"

# The summand of attention scores: 0 where a beam sees a slot, else the dtype's lowest number.
Bias = Float[Tensor, "batch 1 beams slots"]
# One mask for all layers, or one for each kind of layer.
Mask = Bias | dict[str, Bias]


class TreePositions(NamedTuple):
    """Positions of a step's slots and queries in their hypotheses."""

    slots: Int64[Tensor, "batch slots"]  # 0 for padding and unused slots
    queries: Int64[Tensor, "batch beams"]  # positions of every beam's newest token
    maxima: tuple[int, ...]  # distinct positions of queries, ascending; may include evicted prompts


class TreeMask:
    """The mask and the positions of each prompt's slots, updated as beams grow, move and end.

    The prompt's columns are the first slots, which all beams see. Every step adds one slot per beam. A beam
    sees the slots of its ancestors, so a reorder of beams is a reorder of this mask. Slots are allocated for
    several steps at once: shapes are constant until these are used up, so a step can be recorded. `new` is
    the expected number of steps, None if unknown; a larger number allocates more slots at once.
    """

    def __init__(self, prompt_mask: Columns, beams: int, dtype: torch.dtype, new: int | None = None) -> None:
        self.beams = beams
        self.length = prompt_mask.shape[1]  # slots of the prompts
        self.slots = self.length  # in use
        self.room = self.length  # allocated
        self.columns = self.length  # of the longest hypothesis, padding included
        self.max_slots = None if new is None else self.length + new * beams
        self.is_sparse = False  # at the last count, beams read many more slots than they saw
        self._next_count = self.slots + _STEPS_BETWEEN_COUNTS * beams
        self._hidden = torch.finfo(dtype).min  # some softmaxes return NaN for minus infinity
        tokens = prompt_mask.long()
        # Tokens of a beam of each prompt: now, and in its prompt. [batch]
        self.lengths, self.prompt_lengths = tokens.sum(-1), tokens.sum(-1)
        self.max_positions = self._distinct_positions()
        self.slot_positions = (tokens.cumsum(-1) - 1).clamp(min=0)  # [batch room]
        mask = torch.zeros(prompt_mask.shape, dtype=dtype, device=prompt_mask.device)
        # [batch beams room]
        self._bias = mask.masked_fill(~prompt_mask, self._hidden)[:, None].repeat(1, beams, 1)
        new_mask = torch.full((beams, beams), self._hidden, dtype=dtype, device=prompt_mask.device)
        self._new_mask = new_mask.fill_diagonal_(0)  # of the new slots, a beam sees its own
        self.new_slots = torch.arange(self.length - beams, self.length, device=prompt_mask.device)
        self._allocate()

    @property
    def batch(self) -> int:
        """Number of prompts."""
        return len(self._bias)

    @property
    def bias(self) -> Bias:
        """The mask of full attention."""
        return self._bias[:, None]

    @property
    def positions(self) -> TreePositions:
        """The positions of all slots and of the beams' newest tokens."""
        queries = (self.lengths - 1)[:, None].expand(-1, self.beams)
        return TreePositions(self.slot_positions, queries, tuple(self.max_positions))

    @property
    def shared_columns(self) -> int:
        """Number of columns that are surely equal for all beams of a prompt. Reads the device."""
        return self.columns - int((self.lengths - self.prompt_lengths).max())

    @property
    def column_mask(self) -> Columns:
        """The columns of left-padded hypotheses that hold tokens."""
        columns = torch.arange(self.columns, device=self.lengths.device)
        return columns >= self.columns - self.lengths[:, None]

    def reorder(self, rows: PerRow) -> None:
        """Make beam `i` the former beam `rows[i]` of the same prompt."""
        generated = self._bias.flatten(0, 1)[:, self.length : self.slots]  # the prompt is the same for all
        generated.copy_(generated.index_select(0, rows))

    def append(self) -> None:
        """Add one slot per beam for the next token, at `new_slots`."""
        if self.slots + self.beams > self.room:
            self._allocate()
        self.slots += self.beams
        self.columns += 1
        self.max_positions = [position + 1 for position in self.max_positions]
        self.new_slots += self.beams
        self._bias[:, :, self.slots - self.beams : self.slots] = self._new_mask
        self.slot_positions[:, self.slots - self.beams : self.slots] = self.lengths[:, None]
        self.lengths += 1

    def slots_to_keep(self) -> Int64[Tensor, "batch kept"] | None:
        """The live slots, if more than half of the generated slots are dead; else None.

        A prompt with fewer live slots than others keeps some dead ones.
        """
        self.is_sparse = False
        if self.slots < self._next_count:
            return None
        alive = (self._bias[:, :, self.length : self.slots] == 0).any(1)
        kept = int(alive.sum(-1).max())
        generated = self.slots - self.length
        self._next_count = self.length + max(2 * kept, kept + _STEPS_BETWEEN_COUNTS * self.beams)
        self.is_sparse = self.length + kept > _SPARSE * self.columns
        if 2 * kept > generated:
            return None
        live_first = (~alive).long().argsort(dim=-1, stable=True)[:, :kept] + self.length
        prompt = torch.arange(self.length, device=live_first.device).expand(len(live_first), -1)
        return torch.cat([prompt, live_first], -1)

    def compact(self, slots: Int64[Tensor, "batch kept"]) -> None:
        """Make slot `i` of every prompt its former slot `slots[prompt, i]`."""
        self.slots = slots.shape[1]
        self._bias[:, :, : self.slots] = self._bias.gather(-1, slots[:, None].expand(-1, self.beams, -1))
        self._bias[:, :, self.slots :] = self._hidden
        self.slot_positions[:, : self.slots] = self.slot_positions.gather(-1, slots)
        self.slot_positions[:, self.slots :] = 0
        self._move_new_slots()

    def select(self, prompts: Int64[Tensor, " kept"], first: int = 0) -> None:
        """Keep some prompts, without the slots before `first`."""
        self._bias, self.slot_positions, self.lengths, self.prompt_lengths = (
            tensor.index_select(0, prompts)
            for tensor in (self._bias, self.slot_positions, self.lengths, self.prompt_lengths)
        )
        if len(self.max_positions) > 1:
            self.max_positions = self._distinct_positions()
        if first:
            self._bias, self.slot_positions = self._bias[:, :, first:], self.slot_positions[:, first:]
            self._next_count -= first
            self.max_slots = None if self.max_slots is None else self.max_slots - first
            self._restart(self.length - first, self.slots - first)

    def unseen_prefix(self, prompts: Int64[Tensor, " some"] | None = None) -> int:
        """Number of first slots that no beam of some prompts (None: of all) sees. Reads the device."""
        bias = self._bias if prompts is None else self._bias.index_select(0, prompts)
        seen = (bias[:, 0, : self.length] == 0).any(0)  # all beams see the same prompt columns
        return int(seen.int().argmax())

    def merge(self, other: "TreeMask") -> tuple[int, int]:
        """Append the prompts of another tree; returns the shift of each tree's slots.

        The slots of all prompts end together, so that generated slots begin together.
        """
        both = (self, other)
        length = max(tree.length - tree.unseen_prefix() for tree in both)
        slots = length + max(tree.slots - tree.length for tree in both)
        biases, positions = [], []
        for tree in both:
            padding = (length - tree.length, slots - length - tree.slots + tree.length)
            biases.append(nn.functional.pad(tree.bias[:, 0, :, : tree.slots], padding, value=self._hidden))
            positions.append(nn.functional.pad(tree.slot_positions[:, : tree.slots], padding))
        shifts = (length - self.length, length - other.length)
        self._bias, self.slot_positions = torch.cat(biases), torch.cat(positions)
        self.lengths = torch.cat([self.lengths, other.lengths])
        self.prompt_lengths = torch.cat([self.prompt_lengths, other.prompt_lengths])
        self._next_count += shifts[0]
        expected = [tree.max_slots - tree.slots for tree in both if tree.max_slots is not None]
        self.max_slots = slots + max(expected) if len(expected) == len(both) else None
        self._restart(length, slots)
        return shifts

    def paths(self) -> Ids:
        """The slots that every beam sees, in order, after the padding of its hypothesis."""
        # Positions order the slots of a path; hidden slots come first, as padding.
        rank = torch.where(self.bias[:, 0] == 0, self.slot_positions[:, None], -1)
        return rank.argsort(dim=-1, stable=True).flatten(0, 1)[:, -self.columns :]

    def _restart(self, length: int, slots: int) -> None:
        """Continue after other slots, for other prompts: the longest may have been evicted."""
        self.length, self.slots = length, slots
        self.max_positions = self._distinct_positions()
        self.columns = self.max_positions[-1] + 1
        self._move_new_slots()
        self._allocate()

    def _distinct_positions(self) -> list[int]:
        """The distinct positions of the newest tokens, ascending. Reads the device."""
        return sorted({length - 1 for length in self.lengths.tolist()})

    def _move_new_slots(self) -> None:
        slots = torch.arange(self.slots - self.beams, self.slots, device=self.new_slots.device)
        self.new_slots.copy_(slots)  # the cache's layers hold the tensor

    def _allocate(self) -> None:
        """Double the room for generated slots."""
        generated = self.slots - self.length
        more = max(generated, _STEPS_OF_ROOM * self.beams, _MIN_ROOM)
        if self.max_slots is not None:
            more = max(min(more, self.max_slots - self.slots), self.beams)
        self.room = -(-(self.slots + more) // _ALIGNMENT) * _ALIGNMENT
        padding = (0, self.room - self.slots)
        self._bias = nn.functional.pad(self._bias[:, :, : self.slots], padding, value=self._hidden)
        self.slot_positions = nn.functional.pad(self.slot_positions[:, : self.slots], padding)


@dataclass(frozen=True)
class LayerMasks:
    """The masks that a model's layers need, by the positions of queries and slots."""

    kinds: frozenset[str]  # of layers, if the model takes a mask for each kind; empty for a single mask
    window: int | None  # positions that a sliding layer sees, the query's own included; None for all
    chunk: int | None  # positions per chunk: a chunked layer sees only the query's chunk; None for all

    @classmethod
    def of(cls, config: Any) -> "LayerMasks":
        """The masks for a model's configuration; raises a `ValueError` if a kind of layer is unknown."""
        kinds = frozenset(getattr(config, "layer_types", None) or ())
        if unknown := kinds - {FULL, SLIDING, CHUNKED}:
            raise ValueError(f"layers of {min(unknown)}")
        window = getattr(config, "sliding_window", None)
        if kinds and SLIDING not in kinds:
            window = None
        chunk = getattr(config, "attention_chunk_size", None) if CHUNKED in kinds else None
        return cls(kinds - {FULL} and kinds | {FULL}, window, chunk)

    def __call__(self, bias: Bias, positions: TreePositions) -> Mask:
        """The mask of every kind of layer, from that of full attention."""
        if not self.kinds:
            return bias if self.window is None else _within(bias, positions, self.window)
        masks = {FULL: bias}
        if self.window is not None:
            masks[SLIDING] = _within(bias, positions, self.window)
        if self.chunk is not None:
            slots, queries = positions.slots[:, None, None], positions.queries[:, None, :, None]
            same = slots // self.chunk == queries // self.chunk
            masks[CHUNKED] = bias.masked_fill(~same, torch.finfo(bias.dtype).min)
        return {kind: masks.get(kind, bias) for kind in self.kinds}


def _within(bias: Bias, positions: TreePositions, window: int) -> Bias:
    """The mask without the slots beyond a window."""
    far = positions.queries[:, None, :, None] - positions.slots[:, None, None] >= window
    return bias.masked_fill(far, torch.finfo(bias.dtype).min)
