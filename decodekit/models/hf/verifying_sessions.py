"""Sessions of a transformers model whose rows read several tokens per pass, and can discard them.

The rows of a batch accept different numbers of tokens, but a cache has one length. One kind of session
right-aligns its rows after every pass, with padding on the left as in prompts of different lengths. For
models that cannot ignore padding, the other kind left-aligns its rows: the cache has the columns of the
shortest row, and longer rows read their last tokens again.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor
from typing_extensions import override

from decodekit.core.prompt import Prompt
from decodekit.errors import ModelError
from decodekit.models.hf.forwards.forward import Forward, count_positions, last_logits
from decodekit.models.hf.probes.capabilities import PROBE_ERRORS, PROBE_LENGTH, Capabilities
from decodekit.models.protocols import Columns, Ids, Logits, PerRow, VerifyingSession


class RightAlignedSession(VerifyingSession):
    """A session whose rows end in the same column: their caches are right-aligned after every pass."""

    def __init__(self, model: Forward, prompt_mask: Columns, capacity: int, *, cached: bool) -> None:
        del capacity, cached
        self._model = model
        self._cache = model.new_cache(whole=True)
        self._mask = prompt_mask
        zeros = prompt_mask.new_zeros(len(prompt_mask), dtype=torch.long)
        # At the end of each row: the tokens since the last `keep`, followed by columns of junk.
        self._pending, self._junk = zeros, zeros

    def prefill(self, tokens: Ids) -> Logits:
        """The logits after the prompts."""
        positions = count_positions(self._mask)
        return last_logits(self._model.forward(tokens, self._mask, positions, cache=self._cache))

    def widen(self, rows: PerRow) -> None:
        """Makes row `i` a copy of prompt `rows[i]`."""
        self._cache.reorder(rows)
        self._mask, self._pending, self._junk = (
            tensor.index_select(0, rows) for tensor in (self._mask, self._pending, self._junk)
        )

    @override
    def extend(self, tokens: Ids, counts: PerRow) -> Float32[Tensor, "rows columns vocab"]:
        self._align(self._junk)
        columns = torch.arange(tokens.shape[1], device=tokens.device)
        # Junk is to the right of the valid tokens, which never attend to it.
        valid = columns < counts[:, None]
        before = self._mask.sum(-1, keepdim=True)
        positions = before + torch.minimum(columns, (counts - 1)[:, None])
        self._mask = torch.cat([self._mask, torch.ones_like(valid)], 1)
        tokens = tokens.masked_fill(~valid, 0)
        output = self._model.forward(tokens, self._mask, positions, cache=self._cache, keep=len(columns))
        self._pending, self._junk = self._pending + counts, len(columns) - counts
        logits: Tensor = output.logits[:, -len(columns) :].to(torch.float32, copy=True)
        return logits

    @override
    def keep(self, counts: PerRow) -> None:
        self._align(self._junk + self._pending - counts)
        self._pending = torch.zeros_like(counts)

    def _align(self, discarded: PerRow) -> None:
        """Drops this many columns at the end of each row, and right-aligns the rows."""
        least, most = (int(number) for number in discarded.aminmax())
        width = self._mask.shape[1]
        self._junk = torch.zeros_like(discarded)
        if most == 0:
            return
        columns = torch.arange(width, device=discarded.device)
        if least < most:
            columns = columns - discarded[:, None]
            mask = self._mask.gather(1, columns.clamp(min=0)) & (columns >= 0)
        else:
            mask = self._mask[:, : width - most]
        first = int(mask.long().argmax(-1).min())  # columns that are empty on all rows are dropped
        self._mask = mask[:, first:]
        if least < most:
            self._cache.gather(columns[:, first:].clamp(min=0))
        else:
            self._cache.crop(first, width - most)


class LeftAlignedSession(VerifyingSession):
    """A session whose rows begin in the same column: longer rows read their last tokens again."""

    def __init__(self, model: Forward, prompt_mask: Columns, capacity: int, *, cached: bool) -> None:
        self._model = model
        self._cache = model.new_cache(whole=True) if cached else None
        (batch, length), device = prompt_mask.shape, prompt_mask.device
        mask = torch.ones((batch, capacity), dtype=torch.bool, device=device)
        mask[:, :length] = prompt_mask
        self._mask = mask
        self._wants_mask = model.wants_mask or not bool(prompt_mask.all())
        self._tokens = torch.zeros((batch, capacity), dtype=torch.long, device=device)
        # Per row: its length, the number of tokens that `keep` may discard, and its columns in the cache.
        self._lengths, self._pending, self._cached = [length] * batch, [0] * batch, [length] * batch

    def prefill(self, tokens: Ids) -> Logits:
        """The logits after the prompts."""
        length = tokens.shape[1]
        self._tokens[:, :length] = tokens
        return last_logits(self._read(0, length, keep=1))

    def widen(self, rows: PerRow) -> None:
        """Makes row `i` a copy of prompt `rows[i]`."""
        if self._cache is not None:
            self._cache.reorder(rows)
        self._mask, self._tokens = self._mask.index_select(0, rows), self._tokens.index_select(0, rows)
        self._lengths, self._pending, self._cached = (
            [numbers[row] for row in rows.tolist()]
            for numbers in (self._lengths, self._pending, self._cached)
        )

    @override
    def extend(self, tokens: Ids, counts: PerRow) -> Float32[Tensor, "rows columns vocab"]:
        before, numbers = self._lengths, counts.tolist()
        self._lengths = [length + number for length, number in zip(before, numbers, strict=True)]
        self._pending = [pending + number for pending, number in zip(self._pending, numbers, strict=True)]
        for row, number in enumerate(numbers):
            self._tokens[row, before[row] : self._lengths[row]] = tokens[row, :number]
        active = [row for row, number in enumerate(numbers) if number]
        start = 0 if self._cache is None else min(self._cached[row] for row in active)
        stop, first = max(self._lengths[row] for row in active), min(before[row] for row in active)
        if self._cache is not None and start < self._cache.columns:
            self._cache.crop(0, start)
        output = self._read(start, stop, keep=stop - first)
        self._cached = [
            self._lengths[row] if number else min(self._cached[row], stop)
            for row, number in enumerate(numbers)
        ]
        columns = torch.tensor(before, device=tokens.device)[:, None] - first
        columns = columns + torch.arange(tokens.shape[1], device=tokens.device)
        logits = output.logits[:, first - stop :]
        columns = columns.clamp(min=0, max=stop - first - 1)[..., None].expand(-1, -1, logits.shape[-1])
        picked: Tensor = logits.gather(1, columns).float()
        return picked

    @override
    def keep(self, counts: PerRow) -> None:
        for row, count in enumerate(counts.tolist()):
            self._lengths[row] -= self._pending[row] - count
            self._cached[row] = min(self._cached[row], self._lengths[row])
        self._pending = [0] * len(self._pending)

    def _read(self, start: int, stop: int, *, keep: int) -> Any:
        mask = self._mask[:, :stop] if self._wants_mask else None
        positions = count_positions(self._mask)[:, start:stop]
        return self._model.forward(self._tokens[:, start:stop], mask, positions, cache=self._cache, keep=keep)


WidenableVerifier = RightAlignedSession | LeftAlignedSession
VerifierKind = type[RightAlignedSession] | type[LeftAlignedSession]


@dataclass(frozen=True, eq=False)
class Verification:
    """Starts verifying sessions of the kind that computes the right logits for a model."""

    capabilities: Capabilities

    def start(self, prompt: Prompt, rows_per_prompt: int, capacity: int) -> tuple[VerifyingSession, Logits]:
        """A session with `rows_per_prompt` rows per prompt, and the logits after the prompts."""
        session, logits = self._start(prompt, capacity, self.kind)
        rows = torch.arange(len(logits), device=logits.device).repeat_interleave(rows_per_prompt)
        if rows_per_prompt > 1:
            session.widen(rows)
        return session, logits.index_select(0, rows)

    def _start(self, prompt: Prompt, capacity: int, kind: VerifierKind) -> tuple[WidenableVerifier, Logits]:
        prompt = prompt.to(self.capabilities.model.device)
        forward = self.capabilities.forward_after(prompt, share=False)
        session = kind(forward, prompt.mask, capacity, cached=self.capabilities.cached)
        return session, session.prefill(prompt.tokens.masked_fill(~prompt.mask, 0))

    @cached_property
    def kind(self) -> VerifierKind:
        """The kind of session that fits the model; raises a `ModelError` if there is none."""
        if not self.capabilities.cached or self.capabilities.has_few_positions:
            return LeftAlignedSession  # nothing to probe, or too few positions for it
        kinds: list[VerifierKind] = [RightAlignedSession] if self.capabilities.ignores_padding else []
        for kind in (*kinds, LeftAlignedSession):
            if self._can_discard(kind):
                return kind
        raise ModelError(
            f"HFModel: {self.capabilities.name}'s cache cannot discard tokens that it has read. "
            "Use HFModel(model, cache='none'), which reads the text again."
        )

    def _can_discard(self, kind: VerifierKind) -> bool:
        """True if rows that read and discard different numbers of tokens continue their own sequences."""
        sequences, read = self.capabilities.sequences, self.capabilities.read_sequence
        first, second, last, _ = sequences
        third = second[0]
        try:
            prompt = self.capabilities.with_source([first, second])
            session, logits = self._start(prompt, PROBE_LENGTH, kind)
            tensor = partial(torch.tensor, device=logits.device)
            several = session.extend(tensor([[third, last, third], [last, third, 0]]), tensor([3, 2]))
            session.keep(tensor([1, 2]))
            one = session.extend(tensor([[last], [last]]), tensor([1, 1]))
        except PROBE_ERRORS:
            return False  # the cache has no columns, or none that can be moved
        ahead, other = read([*first, third, last, third]), read([*second, third, last, third])
        signal = ahead - other  # the effect of the first token on all later ones
        agree = sequences.agree(several[0], ahead[2:], signal=signal[2:])
        after = [read([*first, third, last]), read([*second, last, third, last])]
        agree = agree and sequences.agree(several[1, :2], after[1][2:4], signal=signal[2:])
        expected = torch.stack([logits[-1] for logits in after])
        return agree and sequences.agree(one[:, 0], expected, signal=signal[3])
