"""The trie cache: the beams of a prompt are queries of one batch row, and share keys and values."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from decodekit.models.hf.cache import Cache
from decodekit.models.hf.forwards.forward import Forward, MergeableForward, count_positions, forward_lock
from decodekit.models.hf.sessions import RowSession
from decodekit.models.hf.trie_cache.grouped_attention import grouped_attention
from decodekit.models.hf.trie_cache.position_patches import Patch, patched
from decodekit.models.hf.trie_cache.tree_mask import LayerMasks, TreeMask
from decodekit.models.protocols import Columns, Logits, PerRow

# Turns a function that runs a pass into a recording of it.
Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]


class TrieForward:
    """A model's forward pass in which the rows of a prompt are queries of one batch row."""

    def __init__(
        self, model: Forward, config: Any, patches: list[Patch], module: Any, can_merge: Callable[[], bool]
    ) -> None:
        self.model, self._module, self.can_merge = model, module, can_merge
        self.dtype: torch.dtype = module.dtype
        self._config, self._patches, self._masks = config, patches, LayerMasks.of(config)

    def __call__(self, tokens: Int64[Tensor, "batch beams"], tree: TreeMask, cache: Cache) -> Tensor:
        """The logits after one more token on every beam."""
        positions = tree.positions
        mask = self._masks(tree.bias, positions)
        patches = patched(self._patches, positions) if self._patches else nullcontext()
        with forward_lock(self._module), grouped_attention(self._config, mask), patches:
            output = self.model.forward(tokens, mask, positions.queries, cache=cache, keep=tokens.shape[1])
        logits: Tensor = output.logits
        return logits


class TrieSession:
    """A run of a transformers model with one cache entry per prompt.

    The prompt's keys and values are computed and stored once. A step appends one slot per beam. A reorder of
    beams moves a mask, and copies no keys or values. Dead branches are removed now and then. With
    `may_spread`, a session switches to one entry per row when beams share few slots, as samples longer than
    their prompt do. `record` records passes. The cache overstates its length by `pretended` columns, to test
    if the model uses it.
    """

    def __init__(  # noqa: PLR0913 - as TrieSupport has them
        self,
        forward: TrieForward,
        prompt_mask: Columns,
        beams: int,
        capacity: int,
        *,
        may_spread: bool = False,
        record: Record | None = None,
        pretended: int = 0,
    ) -> None:
        self._forward, self._mask, self._capacity = forward, prompt_mask, capacity
        self._may_spread, self._record, self._pretended = may_spread, record, pretended
        self._has_joined = False
        self._rows: RowSession | None = None
        self._cache = forward.model.new_cache(whole=True)
        self._tree = TreeMask(prompt_mask, beams, forward.dtype, capacity - prompt_mask.shape[1])
        self._room = self._tree.room
        self._tokens = torch.zeros((len(prompt_mask), beams), dtype=torch.long, device=prompt_mask.device)
        self._pass: Callable[[], Tensor] | None = None  # a recording holds the memory of its shapes

    def prefill(self, tokens: Int64[Tensor, "batch length"]) -> Logits:
        """The logits after the prompts, repeated for every row."""
        is_full = bool(self._mask.all()) and not self._forward.model.wants_mask
        output = self._forward.model.forward(
            tokens, None if is_full else self._mask, count_positions(self._mask), cache=self._cache
        )
        self._cache.to_slots(self._room, self._tree.new_slots)
        self._cache.pretend(self._pretended)
        logits: Tensor = output.logits[:, -1].float()
        return logits.repeat_interleave(self._tree.beams, 0)

    def advance(self, tokens: PerRow, source_rows: PerRow | None) -> Logits:
        """The logits after one more token on every row."""
        if self._rows is not None:
            return self._rows.advance(tokens, source_rows)
        if source_rows is not None:
            self._tree.reorder(source_rows)
        if (slots := self._tree.slots_to_keep()) is not None:
            self._tree.compact(slots)
            self._cache.compact(slots)
        if self._may_spread and self._tree.is_sparse:
            return self.as_rows().advance(tokens, None)
        self._tree.append()
        if self._room != self._tree.room:
            self._pass, self._room = None, self._tree.room
            self._cache.resize(self._room)
        if self._pass is None:
            self._tokens = tokens.view(-1, self._tree.beams).clone()
            self._pass = self._new_pass()
        self._tokens.copy_(tokens.view(self._tokens.shape))
        # A copy: the next pass may overwrite the result.
        return self._pass().to(torch.float32, copy=True).flatten(0, 1).contiguous()

    def _new_pass(self) -> Callable[[], Tensor]:
        """The model's pass over the current tree and tokens."""
        # A reference to the session would be a cycle, and delay freeing its memory.
        forward, tree, tokens, cache = self._forward, self._tree, self._tokens, self._cache

        def run() -> Tensor:
            return forward(tokens, tree, cache)

        return run if self._record is None else self._record(run)

    @property
    def can_evict(self) -> bool:
        """True: prompts can always be evicted."""
        return True

    def keep_prompts(self, prompts: Int64[Tensor, " kept"]) -> None:
        """Continue with some prompts only."""
        if self._rows is not None:
            self._rows.keep_prompts(prompts)
            return
        self._pass = None
        if isinstance(self._forward.model, MergeableForward):
            self._forward.model.keep_prompts(prompts, self._tree.batch, self._cache)
        first = self._tree.unseen_prefix(prompts) if self._has_joined else 0
        remaining = self.remaining
        self._tree.select(prompts, first)
        self._cache.select(prompts)
        if first:
            self._cache.resize(self._tree.room, first)
        self._capacity, self._room = self._tree.columns + remaining, self._tree.room

    def can_merge(self) -> bool:
        """True if another run can be merged into this one, now and after it has continued as rows."""
        model = self._forward.model
        if not self._cache.is_buffered or not isinstance(model, MergeableForward):
            return False
        becomes_rows = self.is_spread or (self._may_spread and self._tree.beams > 1)
        return self._forward.can_merge() and (not becomes_rows or model.can_merge())

    def merge(self, other: "TrieSession") -> None:
        """Append another run's prompts."""
        if self.is_spread or other.is_spread:
            self.as_rows().merge(other.as_rows())
            return
        self._pass = None
        model, cache, tree = other._forward.model, other._cache, other._tree  # noqa: SLF001 - of this class
        remaining = max(self.remaining, other.remaining)
        if isinstance(self._forward.model, MergeableForward):
            self._forward.model.merge(model, (self._tree.batch, tree.batch), (self._cache, cache))
        shifts = self._tree.merge(tree)
        self._cache.merge(cache, shifts, self._tree.slots, self._tree.room)
        # After the first merge, prompts change often, and each change would need a new recording.
        self._has_joined, self._record = True, None
        self._capacity, self._room = self._tree.columns + remaining, self._tree.room

    @property
    def remaining(self) -> int:
        """The largest number of columns that may follow."""
        return self._capacity - self._tree.columns

    @property
    def is_spread(self) -> bool:
        """True if the run has continued with one entry per row."""
        return self._rows is not None

    def as_rows(self) -> RowSession:
        """The same run, continued with one entry per row."""
        if self._rows is None:
            tree, rows = self._tree, self._row_cache(None)
            self._cache, self._pass = rows, None  # frees the trie's entries
            self._rows = RowSession(self._forward.model, tree.column_mask, self._capacity, rows, tree.columns)
            self._rows.continue_widened(tree.beams, tree.shared_columns)
        return self._rows

    def cache_of(self, source_rows: PerRow | None) -> Any:
        """A cache of one entry per row, reordered as for the next token."""
        if self._rows is not None:
            return self._rows.cache_of(source_rows)
        return self._row_cache(source_rows).content

    def _row_cache(self, source_rows: PerRow | None) -> Cache:
        paths = self._tree.paths()
        prompts = torch.arange(len(paths), device=paths.device) // self._tree.beams
        if source_rows is not None:
            paths = paths.index_select(0, source_rows)
        return self._cache.to_rows(prompts, paths)

    def __repr__(self) -> str:
        slots = "of rows by now" if self._rows is not None else f"{self._tree.slots} slots"
        return f"TrieSession({self._tree.beams} beams a prompt, {slots})"
