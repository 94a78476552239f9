"""Captured steps: recorded once and replayed, on a CUDA device as a graph, elsewhere as operations."""

from collections.abc import Callable
from typing import Any, Generic

import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from decodekit.accelerate.cuda_graph import record
from decodekit.accelerate.tape import CannotRecordError
from decodekit.core.prompt import Prompt
from decodekit.core.pytrees import Memory, parts_of
from decodekit.core.validation import shown
from decodekit.decoders.base import Decoder, Selection, State
from decodekit.engine.step import StepResult, decode_step
from decodekit.errors import DecodekitError
from decodekit.models.protocols import CapturableModel, Model, Session
from decodekit.processors.base import LogitsProcessor


class CapturedStep(Generic[State]):
    """A step of a decoder, its processors and criteria that keeps its state in the same memory.

    State and memory are copied once, at the first step; from then on every step reads and writes the copies,
    so all steps return the same state.

    Args:
        decoder: The algorithm.
        chain: The processors.
        criteria: The stopping criteria.

    Raises:
        DecodekitError: If a part cannot be captured; the message names it.
    """

    def __init__(self, decoder: Decoder[State], chain: LogitsProcessor, criteria: tuple[object, ...]) -> None:
        check_capturable(decoder, chain, *criteria)
        self._decoder, self._chain = decoder, chain
        self._parts = parts_of(decoder, chain, *criteria)
        self._generators = [part for part in self._parts if isinstance(part, torch.Generator)]
        self._carried: _Carried | None = None
        self._recording: Any = None

    def __call__(
        self,
        logits: Float32[Tensor, "rows vocab"],
        state: State,
        memory: Memory,
        nonfinite: Bool[Tensor, " rows"],
    ) -> StepResult:
        """Take a step. Only the first call reads `state`, `memory` and `nonfinite`.

        Raises:
            DecodekitError: If the step cannot be captured.
        """
        if self._carried is None:
            self._carried = _Carried(
                self._decoder, self._chain, self._parts, logits, (state, memory, nonfinite)
            )
            self._recording = record(self._carried.step, logits.device, self._generators)
        self._carried.logits.copy_(logits)
        try:
            selection, scores = self._recording()
        except CannotRecordError as error:
            raise DecodekitError(
                f"decode: capture=True cannot record a step of {shown(self._decoder, 200)} with "
                f"{shown(self._chain, 200)} ({error}). Use it without capture=True."
            ) from error
        state, memory, nonfinite = self._carried.parts
        return state, selection, memory, scores, nonfinite


class _Carried:
    """The state of a captured step, in the same memory at every step."""

    def __init__(
        self,
        decoder: Decoder[Any],
        chain: LogitsProcessor,
        made_of: list[object],
        logits: Float32[Tensor, "rows vocab"],
        parts: tuple[Any, Memory, Tensor],
    ) -> None:
        self._decoder, self._chain, self._made_of = decoder, chain, made_of
        self._is_first = True
        self.logits = torch.empty_like(logits)
        self.parts = map_tensors(lambda tensor: tensor.clone(), parts)

    def step(self) -> tuple[Selection, Tensor]:
        """Take a step on the carried state, and overwrite it with the new one."""
        state, memory, nonfinite = self.parts
        before = _numbers(self._made_of)
        state, selection, memory, scores, nonfinite = decode_step(
            self._decoder, self._chain, self.logits, state, memory, nonfinite
        )
        counted = [pair for pair in zip(before, _numbers(self._made_of), strict=False) if pair[0] != pair[1]]
        if counted and not self._is_first:  # which may create the state
            raise self._changed(*counted[0])
        self._is_first = False
        held = {_memory(leaf) for leaf in tree_leaves(self.parts) if isinstance(leaf, Tensor)}

        def apart(tensor: Tensor) -> Tensor:
            # Memory that is about to be overwritten is copied first.
            return tensor.clone() if _memory(tensor) in held else tensor

        selection, scores = map_tensors(apart, (selection, scores))
        self._carry((state, memory, nonfinite), apart)
        return selection, scores

    def _carry(self, new: Any, apart: Callable[[Tensor], Tensor]) -> None:  # noqa: ANN401 - a nest of tensors
        """Write a new state over the old one."""
        before, shape = tree_flatten(self.parts)
        try:
            after = shape.flatten_up_to(new)
        except ValueError as error:
            raise self._changed("the structure of its state", f"another ({error})") from error
        moves = []
        for old, found in zip(before, after, strict=True):
            if not isinstance(old, Tensor) or not isinstance(found, Tensor):
                if old is not found and (isinstance(found, Tensor) or old != found):
                    raise self._changed(shown(old), shown(found))
                continue
            if old.shape != found.shape or old.dtype != found.dtype:
                raise self._changed(_kind(old), _kind(found))
            if old is not found:
                moves.append((old, apart(found)))
        for old, found in moves:
            old.copy_(found)

    def _changed(self, old: str, new: str) -> DecodekitError:
        return DecodekitError(
            f"decode: capture=True cannot record a step of {shown(self._decoder, 200)} with "
            f"{shown(self._chain, 200)}: it changes {old} to {new}. Use it without capture=True."
        )


def start_captured(
    model: Model, prompt: Prompt, decoder: Decoder[Any], capacity: int
) -> tuple[Session, Float32[Tensor, "rows vocab"]]:
    """A session of the model whose passes are captured.

    Raises:
        DecodekitError: If decoder or model cannot be captured; the message names it.
    """
    if decoder.outputs_spec:
        raise DecodekitError(
            f"decode: with capture=True the model returns logits only, but {type(decoder).__name__} "
            f"needs {decoder.outputs_spec}. Use it without capture=True."
        )
    if not isinstance(model, CapturableModel):
        raise DecodekitError(
            f"decode: capture=True needs a model with start_captured(), and {shown(model)} has none. Use "
            "dk.HFModel, or write that method: see decodekit.CapturableModel."
        )
    return model.start_captured(prompt, rows_per_prompt=decoder.rows_per_prompt, capacity=capacity)


def check_capturable(*parts: object) -> None:
    """Raise if a part of a run, or a part of a part, works on the host."""
    for part in parts_of(*parts):
        on_host = getattr(part, "capturable", True) is False
        if on_host and not _uncapturable_inner(part):
            raise DecodekitError(
                f"decode: capture=True cannot record {type(part).__name__}, which works on the host. "
                "Use it without capture=True."
            )


def _uncapturable_inner(part: object) -> list[object]:
    """The parts of a part that work on the host."""
    return [inner for inner in parts_of(part) if inner is not part and not getattr(inner, "capturable", True)]


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:  # noqa: ANN401 - any pytree
    """The pytree with `function` applied to every tensor."""
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def _numbers(parts: list[object]) -> list[str]:
    """Plain numbers in the parts of a run. A replay does not update them, so no step may change them."""
    return [
        f"{type(part).__name__}.{name} = {value!r}"
        for part in parts
        if not isinstance(part, torch.Generator)
        for name, value in getattr(part, "__dict__", {}).items()
        if type(value) in {bool, int, float}
    ]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
