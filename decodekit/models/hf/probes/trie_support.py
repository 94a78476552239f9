"""Whether a transformers model can be run over a trie, and how: asked by a numerical test."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from decodekit.core.prompt import Prompt
from decodekit.errors import ModelError
from decodekit.models.hf.forward_lock import lock_of
from decodekit.models.hf.forwards.compiled import Compiled
from decodekit.models.hf.forwards.decoder_only import DecoderOnly
from decodekit.models.hf.forwards.pass_recorder import WORTHWHILE, PassRecorder
from decodekit.models.hf.probes import experiments
from decodekit.models.hf.probes.capabilities import Capabilities
from decodekit.models.hf.probes.experiments import LONGEST
from decodekit.models.hf.probes.verification import ForwardAfter
from decodekit.models.hf.trie_cache.position_patches import PositionPatches
from decodekit.models.hf.trie_cache.session import TrieForward, TrieSession

# How configurations call what layers look back to.
_WINDOWS = ("sliding_window", "attention_chunk_size")
# More than any model has positions.
_FAR = 2**24


@dataclass(frozen=True, eq=False)
class TrieSupport:
    """Runs a model over tries, where it can.

    Attributes:
        abilities: What the model can do else.
        model: The model.
        config: Of the half that says the text.
        forward_after: Its forward pass.
        cached: Whether it has a cache.
        may_spread: Whether a run may go on with one entry a row where that is quicker.
        recorder: Records passes.
        compiled: Compiles them; None: they are not compiled.
    """

    capabilities: Capabilities
    model: Any
    config: Any
    forward_after: ForwardAfter
    cached: bool
    may_spread: bool
    recorder: PassRecorder
    compiled: Compiled | None

    def start(
        self,
        prompt: Prompt,
        rows_per_prompt: int,
        capacity: int,
        *,
        recorded: bool | Literal["must"] = False,
        pretended: int = 0,
    ) -> tuple[TrieSession, Float32[Tensor, "rows vocab"]]:
        """A session with so many rows a prompt, and the logits after the prompts."""
        prompt = prompt.to(self.model.device)
        model = self.forward_after(prompt, share=True)
        if self.compiled is not None and isinstance(model, DecoderOnly) and not pretended:  # not in a test
            model = model.by(self.compiled)
        forward = TrieForward(model, self.config, self._depths, self.model, lambda: self.joins)
        on_cpu = self.model.device.type == "cpu"  # elsewhere reading keys costs more than looking at them
        if self.compiled is not None and on_cpu:  # its operations are not torch's
            recorded = False
        session = TrieSession(
            forward,
            prompt.mask,
            rows_per_prompt,
            capacity,
            may_spread=self.may_spread
            and on_cpu
            and not self.capabilities.reads_source
            and recorded != "must",
            record=partial(self.recorder.record, must=recorded == "must") if recorded else None,
            pretended=pretended,
        )
        return session, session.prefill(prompt.tokens.masked_fill(~prompt.mask, 0))

    def records(self, new: int, rows_per_prompt: int) -> bool:
        """Whether passes are recorded or compiled in a run of so many new tokens.

        Raises:
            ModelError: If they must be, and cannot.
        """
        if self.recorder.wanted is True or self.compiled is not None:
            self.check_recorded()
            return True
        # With one row a prompt a window would spare memory that a trie keeps.
        keeps = rows_per_prompt > 1 or not any(getattr(self.config, name, None) for name in _WINDOWS)
        return new >= WORTHWHILE and keeps and not self.unrecorded

    @property
    def unrecorded(self) -> str:
        """Why passes are not recorded; empty: they are."""
        return self.recorder.refusal or self._counting or self.refusal

    def check_recorded(self) -> None:
        """Raises if passes cannot be recorded or compiled."""
        self.recorder.check(self._counting or self.refusal)

    @property
    def _counting(self) -> str:
        return "it counts positions by its cache's length" if self._depths.is_needed else ""

    @cached_property
    def refusal(self) -> str:
        """Why the model cannot be run over a trie; empty: it can."""
        if unfit := self._unfit():
            return unfit
        try:
            with lock_of(self.model), _short_windows(self.config):
                branches = experiments.branches(
                    self._open, self.capabilities.read_after_one_source, self.capabilities.texts
                )
        except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            return f"it raises {type(error).__name__}"
        except ValueError as error:  # as transformers' own checks do, and layers of other kinds
            return f"it raises ValueError: {error}"
        return "" if branches else "its logits would be others"

    @cached_property
    def joins(self) -> bool:
        """Whether trees of several runs can be joined; never where every new shape has to be compiled."""
        if self.compiled is not None:
            return False
        with lock_of(self.model), _short_windows(self.config):
            return self.capabilities.joins_over(lambda prompt: self.start(prompt, 2, LONGEST, pretended=_FAR))

    def _unfit(self) -> str:
        """What rules it out before it is asked; empty: nothing."""
        if not self.cached:
            return "it has no cache"
        if 0 < self.capabilities.positions < LONGEST:
            return "it has too few positions to be asked"
        if not self.capabilities.follows_rows:
            return "its cache cannot be reordered"
        return "it holds a mask of all positions" if _holds_mask(self.model) else ""

    def is_used(self) -> bool:
        """Whether several rows of a prompt share its cache.

        Raises:
            ModelError: If they must, and cannot.
        """
        if self.recorder.cache == "trie":
            self.check()
        return self.recorder.cache in {"auto", "trie"} and not self.refusal

    def check_rows(self, what: str) -> None:
        """Raises if what needs rows is asked for over a trie that must be.

        Args:
            what: What needs them.
        """
        if self.recorder.cache == "trie":
            raise ModelError(
                f"HFModel: {what} needs a cache with one entry a row, got cache='trie'. Use cache='auto'."
            )
        if self.recorder.wanted is True or self.compiled is not None:
            raise ModelError(
                f"HFModel: {what} cannot be recorded or compiled, got recorded={self.recorder.wanted} and "
                f"compiled={self.compiled is not None}. Use recorded='auto' and compiled=False."
            )

    def check(self) -> None:
        """Raises if the model cannot be run over a trie."""
        if self.refusal:
            raise ModelError(
                f"HFModel: {self.capabilities.name} cannot be run with cache='trie': {self.refusal}. "
                "Use cache='auto', or 'rows'."
            )

    def describe(self, wanted: str) -> str:
        """Which cache the rows of a prompt have, as far as it was asked."""
        if wanted == "rows":
            return wanted
        refusal = vars(self).get("refusal")  # kept once it was asked
        return wanted if refusal is None else "trie" if not refusal else f"rows ({refusal})"

    def describe_recorded(self) -> str:
        """Whether passes are recorded, once it was asked; or how long it took to compile them."""
        if self.compiled is not None:
            return f", compiled={self.compiled}"
        if "refusal" not in vars(self):
            return ""
        return f", recorded=no ({self.unrecorded})" if self.unrecorded else ", recorded=yes"

    @cached_property
    def _depths(self) -> PositionPatches:
        return PositionPatches(self.model.get_decoder() if self.capabilities.reads_source else self.model)

    def _open(
        self, prompt: Prompt, rows_per_prompt: int, capacity: int
    ) -> tuple[TrieSession, Float32[Tensor, "rows vocab"]]:
        # In a trie the cache's length says nothing about positions: who believes it is found out so.
        prompt = self.capabilities.after_one_source(prompt)
        return self.start(prompt, rows_per_prompt, capacity, pretended=_FAR)


def _holds_mask(model: nn.Module) -> bool:
    """Whether it has a table of which position sees which: then it counts slots, up to the table's size."""
    shapes = (buffer.shape for buffer in model.buffers() if buffer.dtype == torch.bool)
    return any(len(shape) > 1 and shape[-1] == shape[-2] > 1 for shape in shapes)


@contextmanager
def _short_windows(config: Any) -> Iterator[None]:  # noqa: ANN401
    """Inside, windows and chunks of attention are so short that the texts of the test reach beyond them."""
    names = [name for name in _WINDOWS if getattr(config, name, None)]
    before = {name: getattr(config, name) for name in names}
    try:
        for name in names:
            setattr(config, name, min(before[name], 2))
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
