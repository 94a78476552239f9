"""Which keys every beam sees: the branches of a tree, as a mask over the slots of one batch row."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

# A count of live slots reads the device: not before so many steps' worth of new ones.
_STEPS_BETWEEN_COUNTS = 16
# Room is made for so many steps, and so many slots, at least: it is looked at, but making it costs too.
_STEPS_OF_ROOM, _LEAST_ROOM = 32, 64
_ALIGNED = 16  # slots; attention with a mask wants whole rows of memory
# Where a beam looks at more than so many times the slots that it sees, rows are quicker on the CPU: so it was
# with 5 and 8 beams.
_WIDE = 3


class TreeMask:
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
        self.columns = self.length  # of the longest text, padding included
        self.most = None if new is None else self.length + new * beams  # slots that are expected
        self.is_wide = False  # whether a beam was seen to look at many times what it sees
        self._count_at = self.slots + _STEPS_BETWEEN_COUNTS * beams
        self._unseen = torch.finfo(dtype).min  # and not minus infinity, of which some softmaxes make NaN
        texts = prompt_mask.long()
        # How many a beam of each prompt has, and had at the beginning. [batch]
        self.tokens, self.begun = texts.sum(-1), texts.sum(-1)
        self.max_positions = self._tops()
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
    def batch(self) -> int:
        """Prompts."""
        return len(self._bias)

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
        return (self.tokens - 1)[:, None].expand(-1, self.beams)

    @property
    def depth(self) -> int:
        """The greatest of these positions."""
        return self.max_positions[-1]

    @property
    def shared(self) -> int:
        """How many of the columns are the same for all beams of a prompt, at least. Reads the device."""
        return self.columns - int((self.tokens - self.begun).max())

    @property
    def texts(self) -> Bool[Tensor, "batch columns"]:
        """Which columns of the texts hold tokens, after padding on the left."""
        columns = torch.arange(self.columns, device=self.tokens.device)
        return columns >= self.columns - self.tokens[:, None]

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
        self.columns += 1
        self.max_positions = [top + 1 for top in self.max_positions]
        self.places += self.beams
        self._bias[:, :, self.slots - self.beams : self.slots] = self._own
        self._depths[:, self.slots - self.beams : self.slots] = self.tokens[:, None]
        self.tokens += 1

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
        self.is_wide = self.length + kept > _WIDE * self.columns
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
        self._place()

    def keep(self, prompts: Int64[Tensor, " kept"], first: int = 0) -> None:
        """Leaves only these prompts, and of their slots those from `first` on."""
        self._bias, self._depths, self.tokens, self.begun = (
            tensor.index_select(0, prompts) for tensor in (self._bias, self._depths, self.tokens, self.begun)
        )
        if len(self.max_positions) > 1:
            self.max_positions = self._tops()
        if first:
            self._bias, self._depths = self._bias[:, :, first:], self._depths[:, first:]
            self._count_at -= first
            self.most = None if self.most is None else self.most - first
            self._stand(self.length - first, self.slots - first)

    def unseen(self, prompts: Int64[Tensor, " some"] | None = None) -> int:
        """How many of the first slots no beam of some prompts sees; None: of all. Reads the device."""
        bias = self._bias if prompts is None else self._bias.index_select(0, prompts)
        seen = (bias[:, 0, : self.length] == 0).any(0)  # what was before the beams is the same for all
        return int(seen.int().argmax())

    def join(self, other: "TreeMask") -> tuple[int, int]:
        """Goes on with the prompts of another tree after its own; returns by how much the slots of each move.

        What was before the beams ends where it did, or later, so that those of all prompts begin together.
        """
        both = (self, other)
        length = max(tree.length - tree.unseen() for tree in both)
        slots = length + max(tree.slots - tree.length for tree in both)
        biases, depths = [], []
        for tree in both:
            around = (length - tree.length, slots - length - tree.slots + tree.length)
            biases.append(nn.functional.pad(tree.bias[:, 0, :, : tree.slots], around, value=self._unseen))
            depths.append(nn.functional.pad(tree.depths[:, : tree.slots], around))
        shifts = (length - self.length, length - other.length)
        self._bias, self._depths = torch.cat(biases), torch.cat(depths)
        self.tokens = torch.cat([self.tokens, other.tokens])
        self.begun = torch.cat([self.begun, other.begun])
        self._count_at += shifts[0]
        known = [tree.most - tree.slots for tree in both if tree.most is not None]
        self.most = slots + max(known) if len(known) == len(both) else None
        self._stand(length, slots)
        return shifts

    def _stand(self, length: int, slots: int) -> None:
        """Begins to grow at other slots, for other texts; what was the longest may have left."""
        self.length, self.slots = length, slots
        self.max_positions = self._tops()
        self.columns = self.depth + 1
        self._place()
        self._make_room()

    def _tops(self) -> list[int]:
        """The positions of the newest tokens, each once, ascending. Reads the device."""
        return sorted({tokens - 1 for tokens in self.tokens.tolist()})

    def _place(self) -> None:
        new = torch.arange(self.slots - self.beams, self.slots, device=self.places.device)
        self.places.copy_(new)  # others know the tensor

    def paths(self) -> Int64[Tensor, "rows columns"]:
        """The slots that every beam sees, first to last, after as much padding as its prompt has."""
        # Depth orders the slots of a path; what it does not see goes to the front, as padding.
        rank = torch.where(self.bias[:, 0] == 0, self.depths[:, None], -1)
        return rank.argsort(dim=-1, stable=True).flatten(0, 1)[:, -self.columns :]

    def _make_room(self) -> None:
        """Doubles the room for branches."""
        branched = self.slots - self.length
        more = max(branched, _STEPS_OF_ROOM * self.beams, _LEAST_ROOM)
        if self.most is not None:
            more = max(min(more, self.most - self.slots), self.beams)
        self.room = -(-(self.slots + more) // _ALIGNED) * _ALIGNED
        added = (0, self.room - self.slots)
        self._bias = nn.functional.pad(self._bias[:, :, : self.slots], added, value=self._unseen)
        self._depths = nn.functional.pad(self._depths[:, : self.slots], added)
