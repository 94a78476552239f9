"""Which way a transformers model takes back what it has read: asked by a numerical test."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.prompt import Prompt
from decodekit.errors import ModelError
from decodekit.models.hf.probes.capabilities import Capabilities
from decodekit.models.hf.probes.experiments import LONGEST
from decodekit.models.hf.sessions import Forward
from decodekit.models.hf.verifying_sessions import AlignedSession, RereadingSession
from decodekit.models.protocols import VerifyingSession


@runtime_checkable
class WideningVerifier(VerifyingSession, Protocol):
    """A session that starts with one row a prompt."""

    def prefill(self, tokens: Int64[Tensor, "rows length"]) -> Float32[Tensor, "rows vocab"]:
        """The logits after the prompts."""

    def widen(self, rows: Int64[Tensor, " rows"]) -> None:
        """Makes row `i` what prompt `rows[i]` is."""


@runtime_checkable
class Verifier(Protocol):
    """Makes a session."""

    def __call__(
        self, model: Forward, prompt_mask: Bool[Tensor, "batch length"], capacity: int, *, cached: bool
    ) -> WideningVerifier:
        """The session, before it has read the prompts."""


@runtime_checkable
class ForwardAfter(Protocol):
    """Gives a model's forward pass over prompts, once an encoder has read what it reads."""

    def __call__(self, prompt: Prompt, *, share: bool) -> Forward:
        """The forward pass; `share` as in `ConditionedDecoder`."""


@dataclass(frozen=True, eq=False)
class Verification:
    """Runs a model whose rows read several tokens a pass and take them back, in the way that is right for it.

    Attributes:
        abilities: What the model can do else.
        cache_name: What its forward calls its cache; None: it has none.
        model: The model, of which only the device is asked.
        forward_after: Its forward pass.
    """

    capabilities: Capabilities
    cache_name: str | None
    model: Any
    forward_after: ForwardAfter

    def start(
        self, prompt: Prompt, rows_per_prompt: int, capacity: int
    ) -> tuple[VerifyingSession, Float32[Tensor, "rows vocab"]]:
        """A session with so many rows a prompt, and the logits after the prompts."""
        session, logits = self.run(prompt, capacity, self.kind)
        rows = torch.arange(len(logits), device=logits.device).repeat_interleave(rows_per_prompt)
        if rows_per_prompt > 1:
            session.widen(rows)
        return session, logits.index_select(0, rows)

    def run(
        self, prompt: Prompt, capacity: int, kind: Verifier
    ) -> tuple[WideningVerifier, Float32[Tensor, "rows vocab"]]:
        """A session of one kind with one row a prompt, and the logits after the prompts."""
        prompt = prompt.to(self.model.device)
        forward = self.forward_after(prompt, share=False)
        session = kind(forward, prompt.mask, capacity, cached=self.cache_name is not None)
        return session, session.prefill(prompt.tokens.masked_fill(~prompt.mask, 0))

    @cached_property
    def kind(self) -> Verifier:
        """The kind of session under which the model takes back what it should.

        Raises:
            ModelError: If there is none.
        """
        if self.cache_name is None or 0 < self.capabilities.positions < LONGEST:
            return RereadingSession  # nothing to ask, or too short to
        kinds: list[Verifier] = [AlignedSession] if self.capabilities.ignores_padding else []
        for kind in (*kinds, RereadingSession):
            if takes_back(self.capabilities, kind, self.run):
                return kind
        raise ModelError(
            f"HFModel: {self.capabilities.name}'s cache must give back tokens that it has read, and cannot: "
            "recurrent states, for one, do not. Use HFModel(model, cache='none'), which reads the text again."
        )


def takes_back(
    capabilities: Capabilities,
    kind: Verifier,
    run: Callable[[Prompt, int, Verifier], tuple[WideningVerifier, Float32[Tensor, "rows vocab"]]],
) -> bool:
    """Whether two rows that read and take back different numbers of tokens go on from their own texts."""
    texts, read = capabilities.texts, capabilities.read_after_one_source
    first, second, last, _ = texts
    third = second[0]
    try:
        prompt = capabilities.after_one_source(Prompt.from_ids([first, second]))
        session, logits = run(prompt, LONGEST, kind)
        device = logits.device
        new = torch.tensor([[third, last, third], [last, third, 0]], device=device)
        several = session.extend(new, torch.tensor([3, 2], device=device))
        session.keep(torch.tensor([1, 2], device=device))
        one = session.extend(
            torch.full((2, 1), last, device=device), torch.ones(2, dtype=torch.long, device=device)
        )
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False  # what transformers raises where a cache has no columns, or none that can be moved
    ahead, other = read([*first, third, last, third]), read([*second, third, last, third])
    signal = ahead - other  # what the first token makes of those that follow
    same = texts.agree(several[0], ahead[2:], signal=signal[2:])
    after = [read([*first, third, last]), read([*second, last, third, last])]
    same = same and texts.agree(several[1, :2], after[1][2:4], signal=signal[2:])
    got, expected = one[:, 0], torch.stack([text[-1] for text in after])
    return same and texts.agree(got, expected, signal=signal[3])
