"""The trie cache: the beams of a prompt are queries of one batch row, and share what they have in common."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.models.hf.forwards.forward import (
    Forward,
    MergeableForward,
    ShrinkingForward,
    count_positions,
    forward_lock,
)
from decodekit.models.hf.row_cache.cache import Cache
from decodekit.models.hf.sessions import RowSession
from decodekit.models.hf.trie_cache.grouped_attention import grouped_attention
from decodekit.models.hf.trie_cache.layer_masks import LayerMasks
from decodekit.models.hf.trie_cache.position_patches import Places, PositionPatches
from decodekit.models.hf.trie_cache.tree_mask import TreeMask

# What to call in place of a pass.
Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]


class BranchingForward:
    """A model's forward pass in which the rows of a prompt are queries of one batch row.

    Args:
        model: The forward pass of rows.
        config: Of the half that says the text.
        depths: What in it counts positions by the cache's length.
        module: The model.
        can_merge: Returns True if trees of several runs can be merged.
    """

    def __init__(
        self,
        model: Forward,
        config: Any,  # noqa: ANN401
        depths: PositionPatches,
        module: Any,  # noqa: ANN401
        can_merge: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model, self._module, self.can_merge = model, module, can_merge
        self.dtype: torch.dtype = module.dtype
        self._config, self._depths, self._masks = config, depths, LayerMasks.of(config)

    def __call__(self, tokens: Tensor, branches: TreeMask, cache: Cache) -> Any:  # noqa: ANN401 - ModelOutput
        """The model's output for one more token on every beam, `[batch beams]`."""
        places = Places(branches.depths, branches.positions, branches.depth, tuple(branches.max_positions))
        mask = self._masks(branches.bias, places.depths, places.positions)
        with forward_lock(self._module), grouped_attention(self._config, mask), self._depths.counted(places):
            return self.model.forward(tokens, mask, places.positions, cache=cache, keep=tokens.shape[1])


class TrieSession:
    """A run of a transformers model with one cache entry a prompt.

    The prompt's keys and values are computed once and stored once; a step appends one slot a beam, and a
    reorder of beams moves a mask and copies no keys or values. Dead branches are gathered out now and then.

    Args:
        forward: The model's forward pass over branches.
        prompt_mask: Which columns of the prompts hold tokens.
        beams: Rows of each prompt.
        capacity: Columns that prompts and continuations take at most.
        may_spread: Whether to go on with one entry a row once most of what a beam looks at is not its own, as
            with samples that are longer than their prompt.
        record: Records a pass: what to call in its place. None: every pass runs the model.
        pretended: Columns that the cache says it holds beside those it does: a test of who believes it.
    """

    def __init__(  # noqa: PLR0913 - as TrieSupport has them
        self,
        forward: BranchingForward,
        prompt_mask: Bool[Tensor, "batch length"],
        beams: int,
        capacity: int,
        *,
        may_spread: bool = False,
        record: Record | None = None,
        pretended: int = 0,
    ) -> None:
        self._forward, self._mask, self._capacity = forward, prompt_mask, capacity
        self._may_spread, self._pretended = may_spread, pretended
        self._has_joined = False
        self._rows: RowSession | None = None
        self._cache = forward.model.new_cache(whole=True)
        new = capacity - prompt_mask.shape[1]
        self._branches = TreeMask(prompt_mask, beams, forward.dtype, new)
        self._room = self._branches.room
        self._record = record
        self._tokens = torch.zeros((len(prompt_mask), beams), dtype=torch.long, device=prompt_mask.device)
        self._pass: Callable[[], Tensor] | None = None  # in the shapes of now; a recording holds their memory

    def prefill(self, tokens: Int64[Tensor, "batch length"]) -> Float32[Tensor, "rows vocab"]:
        """The logits after the prompts, for every row of each."""
        whole = bool(self._mask.all()) and not self._forward.model.wants_mask
        output = self._forward.model.forward(
            tokens, None if whole else self._mask, count_positions(self._mask), cache=self._cache
        )
        self._cache.slot(self._room, self._branches.places)
        self._cache.pretend(self._pretended)
        logits: Tensor = output.logits[:, -1].float()
        return logits.repeat_interleave(self._branches.beams, 0)

    def advance(
        self, tokens: Int64[Tensor, " rows"], source_rows: Int64[Tensor, " rows"] | None
    ) -> Float32[Tensor, "rows vocab"]:
        """The logits after one more token on every row."""
        if self._rows is not None:
            return self._rows.advance(tokens, source_rows)
        if source_rows is not None:
            self._branches.follow(source_rows)
        if (kept := self._branches.garbage()) is not None:
            self._branches.compact(kept)
            self._cache.compact(kept)
        if self._may_spread and self._branches.is_wide:
            return self.as_rows().advance(tokens, None)
        self._branches.grow()
        if self._room != self._branches.room:
            self._pass, self._room = None, self._branches.room
            self._cache.make_room(self._room)
        if self._pass is None:
            self._tokens = tokens.view(-1, self._branches.beams).clone()
            self._pass = self._new_pass()
        self._tokens.copy_(tokens.view(self._tokens.shape))
        # A copy: what a pass returns may be overwritten by the next one.
        return self._pass().to(torch.float32, copy=True).flatten(0, 1).contiguous()

    def _new_pass(self) -> Callable[[], Tensor]:
        """The model's pass over what was written to the branches and to the tokens, in the shapes of now."""
        # What holds the session itself would keep its memory until Python looks for cycles.
        forward, branches, tokens, cache = self._forward, self._branches, self._tokens, self._cache

        def run() -> Tensor:
            logits: Tensor = forward(tokens, branches, cache).logits
            return logits

        return run if self._record is None else self._record(run)

    @property
    def can_evict(self) -> bool:
        """Prompts can leave."""
        return True

    def keep_prompts(self, prompts: Int64[Tensor, " kept"]) -> None:
        """Goes on with some prompts only."""
        if self._rows is not None:
            self._rows.keep_prompts(prompts)
            return
        self._pass = None
        if isinstance(self._forward.model, ShrinkingForward):
            self._forward.model.keep_prompts(prompts, self._branches.batch, self._cache)
        first, left = self._branches.unseen(prompts) if self._has_joined else 0, self._left
        self._branches.keep(prompts, first)
        self._cache.keep(prompts)
        if first:
            self._cache.drop(first, self._branches.room)
        self._stand(left)

    def can_merge(self) -> bool:
        """Whether another run can be taken in, now and after it has gone on with one entry a row."""
        rows = self._forward.model
        if (
            not self._cache.is_buffered
            or not isinstance(rows, MergeableForward)
            or not self._forward.can_merge()
        ):
            return False
        may_spread = self._may_spread and self._branches.beams > 1
        return rows.can_merge() if self.is_spread or may_spread else True

    def merge(self, other: "TrieSession") -> None:
        """Goes on with another run's prompts after its own."""
        if self.is_spread or other.is_spread:
            self.as_rows().merge(other.as_rows())
            return
        self._pass = None
        model, cache, branches, theirs = other.standing
        left = max(self._left, theirs)
        if isinstance(self._forward.model, MergeableForward):
            self._forward.model.merge(model, (self._branches.batch, branches.batch), (self._cache, cache))
        shifts = self._branches.join(branches)
        self._cache.join(cache, shifts, self._branches.slots, self._branches.room)
        # Prompts come and go from now on, and every time a recording would have to be made anew.
        self._has_joined, self._record = True, None
        self._stand(left)

    @property
    def standing(self) -> tuple[Forward, Cache, TreeMask, int]:
        """What another run needs to take this one in: its slots, their mask, columns that may come."""
        return self._forward.model, self._cache, self._branches, self._left

    @property
    def is_spread(self) -> bool:
        """Whether it has gone on with one entry a row."""
        return self._rows is not None

    def as_rows(self) -> RowSession:
        """The same run with one entry a row, from now on."""
        if self._rows is None:
            self._rows = self._spread()
        return self._rows

    @property
    def _left(self) -> int:
        return self._capacity - self._branches.columns

    def _stand(self, left: int) -> None:
        """Goes on with other prompts, for `left` more columns at most."""
        self._capacity, self._room = self._branches.columns + left, self._branches.room

    def cache_of(self, source_rows: Int64[Tensor, " rows"] | None) -> Any:  # noqa: ANN401 - transformers' Cache
        """A cache of one entry a row, its rows put where the next token would find them."""
        if self._rows is not None:
            return self._rows.cache_of(source_rows)
        return self._of_rows(source_rows).content

    def _of_rows(self, source_rows: Int64[Tensor, " rows"] | None) -> Cache:
        paths = self._branches.paths()
        prompts = torch.arange(len(paths), device=paths.device) // self._branches.beams
        if source_rows is not None:
            paths = paths.index_select(0, source_rows)
        return self._cache.spread(prompts, paths)

    def _spread(self) -> RowSession:
        """The same run with one entry a row."""
        rows, branches = self._of_rows(None), self._branches
        self._cache, self._pass = rows, None  # what was shared is not needed any more
        session = RowSession(self._forward.model, branches.texts, self._capacity, rows, branches.columns)
        session.continue_widened(branches.beams, branches.shared)
        return session

    def __repr__(self) -> str:
        slots = "of rows by now" if self._rows is not None else f"{self._branches.slots} slots"
        return f"TrieSession({self._branches.beams} beams a prompt, {slots})"
