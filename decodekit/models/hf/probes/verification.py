"""Choice of the verifying session that fits a transformers model, by a numerical probe."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from decodekit.core.prompt import Prompt
from decodekit.errors import ModelError
from decodekit.models.hf.forwards.forward import Forward, ForwardAfter
from decodekit.models.hf.probes.capabilities import PROBE_ERRORS, PROBE_LENGTH, Capabilities
from decodekit.models.hf.verifying_sessions import LeftAlignedSession, RightAlignedSession, WidenableVerifier
from decodekit.models.protocols import Logits, VerifyingSession


@runtime_checkable
class SessionKind(Protocol):
    """A class of verifying sessions."""

    def __call__(
        self, model: Forward, prompt_mask: Bool[Tensor, "batch length"], capacity: int, *, cached: bool
    ) -> WidenableVerifier:
        """The session, before it has read the prompts."""


@dataclass(frozen=True, eq=False)
class Verification:
    """Starts verifying sessions of the kind that computes the right logits for a model."""

    capabilities: Capabilities
    cached: bool
    model: Any
    forward_after: ForwardAfter

    def start(self, prompt: Prompt, rows_per_prompt: int, capacity: int) -> tuple[VerifyingSession, Logits]:
        """A session with `rows_per_prompt` rows per prompt, and the logits after the prompts."""
        session, logits = self._start(prompt, capacity, self.kind)
        rows = torch.arange(len(logits), device=logits.device).repeat_interleave(rows_per_prompt)
        if rows_per_prompt > 1:
            session.widen(rows)
        return session, logits.index_select(0, rows)

    def _start(self, prompt: Prompt, capacity: int, kind: SessionKind) -> tuple[WidenableVerifier, Logits]:
        prompt = prompt.to(self.model.device)
        forward = self.forward_after(prompt, share=False)
        session = kind(forward, prompt.mask, capacity, cached=self.cached)
        return session, session.prefill(prompt.tokens.masked_fill(~prompt.mask, 0))

    @cached_property
    def kind(self) -> SessionKind:
        """The kind of session that fits the model.

        Raises:
            ModelError: If there is none.
        """
        if not self.cached or self.capabilities.has_few_positions:
            return LeftAlignedSession  # nothing to probe, or too few positions for it
        kinds: list[SessionKind] = [RightAlignedSession] if self.capabilities.ignores_padding else []
        for kind in (*kinds, LeftAlignedSession):
            if self._can_discard(kind):
                return kind
        raise ModelError(
            f"HFModel: {self.capabilities.name}'s cache must give back tokens that it has read, and cannot: "
            "recurrent states, for one, do not. Use HFModel(model, cache='none'), which reads the text again."
        )

    def _can_discard(self, kind: SessionKind) -> bool:
        """True if rows that read and discard different numbers of tokens continue their own sequences."""
        sequences, read = self.capabilities.sequences, self.capabilities.read_sequence
        first, second, last, _ = sequences
        third = second[0]
        try:
            prompt = self.capabilities.with_source(Prompt.from_ids([first, second]))
            session, logits = self._start(prompt, PROBE_LENGTH, kind)
            device = logits.device
            new = torch.tensor([[third, last, third], [last, third, 0]], device=device)
            several = session.extend(new, torch.tensor([3, 2], device=device))
            session.keep(torch.tensor([1, 2], device=device))
            one = session.extend(
                torch.full((2, 1), last, device=device), torch.ones(2, dtype=torch.long, device=device)
            )
        except PROBE_ERRORS:
            return False  # the cache has no columns, or none that can be moved
        ahead, other = read([*first, third, last, third]), read([*second, third, last, third])
        signal = ahead - other  # the effect of the first token on all later ones
        agree = sequences.agree(several[0], ahead[2:], signal=signal[2:])
        after = [read([*first, third, last]), read([*second, last, third, last])]
        agree = agree and sequences.agree(several[1, :2], after[1][2:4], signal=signal[2:])
        expected = torch.stack([logits[-1] for logits in after])
        return agree and sequences.agree(one[:, 0], expected, signal=signal[3])
