"""Which keys every beam sees: the branches of a tree, as a mask over the slots of one batch row."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

# A count of live slots reads the device: not before so many steps' worth of new ones.
_STEPS_BETWEEN_COUNTS = 16
# Room is made for so many steps, and so many slots, at least: it is looked at, but making it costs too.
_STEPS_OF_ROOM, _LEAST_ROOM = 32, 64
_ALIGNED = 16  # slots; attention with a mask wants whole rows of memory
# Where a beam looks at more than so many times the slots that it sees, rows are quicker on the CPU: so it was
# with 5 and 8 beams.
_WIDE = 3


class Branches:
    """The mask and the depths of a prompt's slots, while its beams grow, move and die.

    The prompt's columns are the first slots, seen by all beams. Every step adds one slot a beam; a beam sees
    those of its own ancestors, so that a reorder of beams is a reorder of this mask. There is room for some
    steps: the shapes stay as they are until it is used up, so that a step can be recorded.

    Args:
        prompt_mask: Which columns of the prompts hold tokens.
        beams: Beams of each prompt.
        dtype: Of the mask: the model's.
        new: Steps that are expected at most: for more, room is made as they come. None: not known.
    """

    def __init__(
        self,
        prompt_mask: Bool[Tensor, "batch length"],
        beams: int,
        dtype: torch.dtype,
        new: int | None = None,
    ) -> None:
        self.beams = beams
        self.length = prompt_mask.shape[1]
        self.slots = self.length  # that are in use
        self.room = self.length
        self._most = None if new is None else self.length + new * beams
        self.steps = 0
        self.is_wide = False  # whether a beam was seen to look at many times what it sees
        self._count_at = self.slots + _STEPS_BETWEEN_COUNTS * beams
        self._unseen = torch.finfo(dtype).min  # and not minus infinity, of which some softmaxes make NaN
        texts = prompt_mask.long()
        self._depth = texts.sum(-1)
        self._longest = int(self._depth.max())
        # A column of padding is at no depth that matters: nobody sees it.
        self._depths = (texts.cumsum(-1) - 1).clamp(min=0)
        seen = torch.zeros(prompt_mask.shape, dtype=dtype, device=prompt_mask.device)
        # [batch beams room]
        self._bias = seen.masked_fill(~prompt_mask, self._unseen)[:, None].repeat(1, beams, 1)
        own = torch.full((beams, beams), self._unseen, dtype=dtype, device=prompt_mask.device)
        self._own = own.fill_diagonal_(0)  # of what is new every beam sees its own
        self.places = torch.arange(self.length - beams, self.length, device=prompt_mask.device)
        self._make_room()

    @property
    def bias(self) -> Float[Tensor, "batch 1 beams room"]:
        """What is added to attention scores: 0 where a beam sees a slot, else the dtype's lowest number."""
        return self._bias[:, None]

    @property
    def depths(self) -> Int64[Tensor, "batch room"]:
        """The position of every slot in its text; 0 where none is."""
        return self._depths

    @property
    def positions(self) -> Int64[Tensor, "batch beams"]:
        """The position of every beam's newest token."""
        return (self._depth - 1)[:, None].expand(-1, self.beams)

    @property
    def depth(self) -> int:
        """The greatest of these positions."""
        return self._longest + self.steps - 1

    def follow(self, rows: Int64[Tensor, " rows"]) -> None:
        """Makes beam `i` what beam `rows[i]` of the same prompt was."""
        # What was before the beams is the same for all of them.
        branched = self._bias.flatten(0, 1)[:, self.length : self.slots]
        branched.copy_(branched.index_select(0, rows))

    def grow(self) -> None:
        """Gives every beam a slot for a token: those at `places`."""
        if self.slots + self.beams > self.room:
            self._make_room()
        self.slots += self.beams
        self.steps += 1
        self.places += self.beams
        self._bias[:, :, self.slots - self.beams : self.slots] = self._own
        self._depths[:, self.slots - self.beams : self.slots] = self._depth[:, None]
        self._depth += 1

    def garbage(self) -> Int64[Tensor, "batch kept"] | None:
        """The slots to keep, where more than half of the branches are dead; None: keep all.

        Rows with fewer live slots than others are filled up with dead ones.
        """
        self.is_wide = False
        if self.slots < self._count_at:
            return None
        alive = (self._bias[:, :, self.length : self.slots] == 0).any(1)
        kept = int(alive.sum(-1).max())
        branched = self.slots - self.length
        self._count_at = self.length + max(2 * kept, kept + _STEPS_BETWEEN_COUNTS * self.beams)
        self.is_wide = self.length + kept > _WIDE * (self.length + self.steps)
        if 2 * kept > branched:
            return None
        chosen = (~alive).long().argsort(dim=-1, stable=True)[:, :kept] + self.length
        prompt = torch.arange(self.length, device=chosen.device).expand(len(chosen), -1)
        return torch.cat([prompt, chosen], -1)

    def compact(self, slots: Int64[Tensor, "batch kept"]) -> None:
        """Makes slot `i` of every prompt what its slot `slots[prompt, i]` was."""
        self.slots = slots.shape[1]
        self._bias[:, :, : self.slots] = self._bias.gather(-1, slots[:, None].expand(-1, self.beams, -1))
        self._bias[:, :, self.slots :] = self._unseen
        self._depths[:, : self.slots] = self._depths.gather(-1, slots)
        self._depths[:, self.slots :] = 0
        self.places.copy_(torch.arange(self.slots - self.beams, self.slots, device=slots.device))

    def keep(self, prompts: Int64[Tensor, " kept"]) -> None:
        """Leaves only these prompts."""
        self._bias, self._depths, self._depth = (
            tensor.index_select(0, prompts) for tensor in (self._bias, self._depths, self._depth)
        )

    def paths(self) -> Int64[Tensor, "rows columns"]:
        """The slots that every beam sees, first to last, after as much padding as its prompt has."""
        # Depth orders the slots of a path; what it does not see goes to the front, as padding.
        rank = torch.where(self.bias[:, 0] == 0, self.depths[:, None], -1)
        return rank.argsort(dim=-1, stable=True).flatten(0, 1)[:, -(self.length + self.steps) :]

    def _make_room(self) -> None:
        """Doubles the room for branches."""
        branched = self.slots - self.length
        more = max(branched, _STEPS_OF_ROOM * self.beams, _LEAST_ROOM)
        if self._most is not None:
            more = max(min(more, self._most - self.slots), self.beams)
        self.room = -(-(self.slots + more) // _ALIGNED) * _ALIGNED
        added = (0, self.room - self.slots)
        self._bias = torch.nn.functional.pad(self._bias[:, :, : self.slots], added, value=self._unseen)
        self._depths = torch.nn.functional.pad(self._depths[:, : self.slots], added)
