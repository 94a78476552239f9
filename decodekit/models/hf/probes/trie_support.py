"""Sessions over a trie for the models that support one, found by a numerical probe."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import torch
from torch import nn

from decodekit.core.prompt import Prompt
from decodekit.errors import ModelError
from decodekit.models.hf.forwards.compiled import Compiled
from decodekit.models.hf.forwards.forward import forward_lock
from decodekit.models.hf.forwards.pass_recorder import MIN_STEPS, PassRecorder
from decodekit.models.hf.probes.capabilities import PROBE_ERRORS, PROBE_LENGTH, Capabilities
from decodekit.models.hf.trie_cache.position_patches import Patch, find_patches
from decodekit.models.hf.trie_cache.session import TrieForward, TrieSession
from decodekit.models.protocols import Logits

# The names of windows and chunks of attention in configurations.
_WINDOWS = ("sliding_window", "attention_chunk_size")
# More positions than any model has.
_FAR = 2**24

Recorded = bool | Literal["must"]  # "must" raises if a pass cannot be recorded


@dataclass(frozen=True, eq=False)
class TrieSupport:
    """Starts sessions over a trie, if the model supports it."""

    capabilities: Capabilities
    may_spread: bool  # a session may continue with one cache entry per row when that is faster
    recorder: PassRecorder
    compiled: Compiled | None

    def start(
        self, prompt: Prompt, beams: int, capacity: int, *, recorded: Recorded = False, pretended: int = 0
    ) -> tuple[TrieSession, Logits]:
        """A session with `beams` rows per prompt, and the logits after the prompts."""
        model = self.capabilities.model
        prompt = prompt.to(model.device)
        compiled = None if pretended else self.compiled  # a probe is not compiled
        plain = self.capabilities.forward_after(prompt, share=True, compiled=compiled)
        config, patches = self.capabilities.config, self._patches
        forward = TrieForward(plain, config, patches, model, lambda: self.merges)
        on_cpu = model.device.type == "cpu"  # elsewhere copying keys costs more than attending to them
        if self.compiled is not None and on_cpu:  # its operations are not torch's
            recorded = False
        may_spread = self.may_spread and on_cpu and not self.capabilities.reads_source and recorded != "must"
        record = partial(self.recorder.record, must=recorded == "must") if recorded else None
        session = TrieSession(
            forward, prompt.mask, beams, capacity, may_spread=may_spread, record=record, pretended=pretended
        )
        return session, session.prefill(prompt.tokens.masked_fill(~prompt.mask, 0))

    def records(self, new: int, rows_per_prompt: int) -> bool:
        """True if a run of `new` tokens is recorded or compiled. Raises if it must be and cannot."""
        if self.recorder.wanted is True or self.compiled is not None:
            self.check_recorded()
            return True
        # With one row per prompt, a sliding window saves memory that a trie does not.
        is_small = rows_per_prompt > 1 or not self._windows
        return new >= MIN_STEPS and is_small and not self._record_refusal

    @property
    def _record_refusal(self) -> str:
        """The reason why passes are not recorded; empty if they are."""
        return self.recorder.refusal or self._counts_columns or self.refusal

    def check_recorded(self) -> None:
        """Raises a `ModelError` if passes cannot be recorded or compiled."""
        self.recorder.check(self._counts_columns or self.refusal)

    @property
    def _counts_columns(self) -> str:
        return "it counts positions by its cache's length" if self._patches else ""

    @cached_property
    def refusal(self) -> str:
        """The reason why the model cannot be run over a trie; empty if it can."""
        if reason := self._refusal_without_probe():
            return reason
        try:
            with self._short_windows():
                agree = self._follows_branches()
        except ValueError as error:  # as transformers' own checks raise, and layers of other kinds
            return f"it raises ValueError: {error}"
        except PROBE_ERRORS as error:
            return f"it raises {type(error).__name__}"
        return "" if agree else "its logits would be others"

    @cached_property
    def merges(self) -> bool:
        """True if sessions can be merged; never if every new shape has to be compiled."""
        if self.compiled is not None:
            return False
        with self._short_windows():
            return self.capabilities.merges(
                lambda prompt: self.start(prompt, 2, PROBE_LENGTH, pretended=_FAR)[0]
            )

    def is_used(self) -> bool:
        """True if the rows of a prompt share its cache. Raises a `ModelError` if they must, and cannot."""
        if self.recorder.cache == "trie" and self.refusal:
            raise ModelError(
                f"HFModel: {self.capabilities.name} cannot be run with cache='trie': {self.refusal}. "
                "Use cache='auto', or 'rows'."
            )
        return self.recorder.cache in {"auto", "trie"} and not self.refusal

    def check_rows(self, purpose: str) -> None:
        """Raises a `ModelError` if an option demands a trie, for a purpose that needs one entry per row."""
        if self.recorder.cache == "trie":
            raise ModelError(
                f"HFModel: {purpose} needs a cache with one entry per row, got cache='trie'. Use "
                "cache='auto'."
            )
        if self.recorder.wanted is True or self.compiled is not None:
            raise ModelError(
                f"HFModel: {purpose} cannot be recorded or compiled, got recorded={self.recorder.wanted} and "
                f"compiled={self.compiled is not None}. Use recorded='auto' and compiled=False."
            )

    def describe(self, wanted: str) -> str:
        """The cache that several rows of a prompt have, as far as it was probed."""
        if wanted == "rows":
            return wanted
        refusal = vars(self).get("refusal")  # set once it was probed
        return wanted if refusal is None else "trie" if not refusal else f"rows ({refusal})"

    def describe_recorded(self) -> str:
        """Recording of passes, as far as it was probed; or the time that compiling took."""
        if self.compiled is not None:
            return f", compiled={self.compiled}"
        if "refusal" not in vars(self):
            return ""
        return f", recorded=no ({self._record_refusal})" if self._record_refusal else ", recorded=yes"

    @cached_property
    def _patches(self) -> list[Patch]:
        model = self.capabilities.model
        return find_patches(model.get_decoder() if self.capabilities.reads_source else model)

    def _refusal_without_probe(self) -> str:
        if not self.capabilities.cached:
            return "it has no cache"
        if self.capabilities.has_few_positions:
            return "it has too few positions to be asked"
        if not self.capabilities.reorders_rows:
            return "its cache cannot be reordered"
        return "it holds a mask of all positions" if _holds_mask(self.capabilities.model) else ""

    @property
    def _windows(self) -> dict[str, int]:
        """The windows and chunks of attention that the configuration sets."""
        config = self.capabilities.config
        return {name: window for name in _WINDOWS if (window := getattr(config, name, None))}

    @contextmanager
    def _short_windows(self) -> Iterator[None]:
        """Shortens windows and chunks of attention, so that the sequences of a probe exceed them."""
        config, before = self.capabilities.config, self._windows
        with forward_lock(self.capabilities.model):
            try:
                for name, window in before.items():
                    setattr(config, name, min(window, 2))
                yield
            finally:
                for name, window in before.items():
                    setattr(config, name, window)

    def _follows_branches(self) -> bool:
        """True if rows of a prompt that share its cache continue their own sequences under any reorder."""
        sequences, read = self.capabilities.sequences, self.capabilities.read_sequence
        first, second, last, _ = sequences
        steps = [
            ([first[0], second[0], first[1]] * 2, None),
            ([second[0], first[0], first[0]] * 2, [1, 0, 1, 5, 5, 3]),
            ([last] * 6, [2, 2, 0, 3, 5, 4]),
        ]
        prompt = self.capabilities.with_source([first, second])
        # In a trie the cache's length is not a position. Models that use it as one are detected by _FAR.
        session, _ = self.start(prompt, 3, PROBE_LENGTH, pretended=_FAR)
        rows: list[list[int]] = [[*first]] * 3 + [[*second]] * 3
        agree = True
        for tokens, sources in steps:
            logits = self.capabilities.advance(session, tokens, sources)
            rows = [[*rows[sources[row] if sources else row], token] for row, token in enumerate(tokens)]
            expected = torch.stack([read(sequence)[-1] for sequence in rows])
            # Rows of one prompt differ by their new tokens, rows 0 and 3 by their prompts.
            signal = torch.minimum(
                (expected[:3] - expected[:3].mean(0)).abs().max(), (expected[0] - expected[3]).abs().max()
            )
            agree = agree and sequences.agree(logits, expected, signal=signal)
        return agree


def _holds_mask(model: nn.Module) -> bool:
    """True if the model has a square mask of positions, which it indexes by cache slots."""
    shapes = (buffer.shape for buffer in model.buffers() if buffer.dtype == torch.bool)
    return any(len(shape) > 1 and shape[-1] == shape[-2] > 1 for shape in shapes)
