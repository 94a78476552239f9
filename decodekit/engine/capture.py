"""The same step, recorded once and replayed: on a CUDA device as a graph, elsewhere as operations."""

from collections.abc import Callable, Iterator
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
from decodekit.engine.step import Step, step
from decodekit.errors import DecodekitError
from decodekit.models.protocols import CapturableModel, Model, Session
from decodekit.processors.base import LogitsProcessor


class CapturedStep(Generic[State]):
    """A decoder's step with its processors and criteria, which stays in the same memory.

    What evolves is copied once, at the first step; from then on every step reads and writes those copies, so
    that the states it returns are one and the same.

    Args:
        decoder: The algorithm.
        chain: What changes the scores.
        criteria: What finishes a hypothesis.

    Raises:
        DecodekitError: If one of them cannot be captured; the message says which.
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
    ) -> Step:
        """The next step. Only the first call looks at `state`, `memory` and `nonfinite`.

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
                "decode: with capture=True a step must not read the device, and "
                f"{shown(self._decoder, 200)} with "
                f"{shown(self._chain, 200)} does ({error}). Use it without capture=True."
            ) from error
        state, memory, nonfinite = self._carried.parts
        return state, selection, memory, scores, nonfinite


class _Carried:
    """What evolves, in the same memory at every step. It knows nothing of the recording, which holds it.

    Args:
        decoder: The algorithm.
        chain: What changes the scores.
        made_of: These, what they are made of, and the criteria.
        logits: Of the first step.
        parts: State, memory and broken rows; copied.
    """

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
        """A step on what is carried, which is overwritten with what comes of it."""
        state, memory, nonfinite = self.parts
        before = _numbers(self._made_of)
        state, selection, memory, scores, nonfinite = step(
            self._decoder, self._chain, self.logits, state, memory, nonfinite
        )
        counted = [pair for pair in zip(before, _numbers(self._made_of), strict=False) if pair[0] != pair[1]]
        if counted and not self._is_first:  # in which something may be kept for later
            raise self._changed(*counted[0])
        self._is_first = False
        held = {_memory(leaf) for leaf in tree_leaves(self.parts) if isinstance(leaf, Tensor)}

        def apart(tensor: Tensor) -> Tensor:
            # What lies in memory that is about to be written to is read first.
            return tensor.clone() if _memory(tensor) in held else tensor

        selection, scores = map_tensors(apart, (selection, scores))
        self._carry((state, memory, nonfinite), apart)
        return selection, scores

    def _carry(self, new: Any, apart: Callable[[Tensor], Tensor]) -> None:  # noqa: ANN401 - a nest of tensors
        """Writes a new state over the old one."""
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
            "decode: with capture=True a step must keep every shape, dtype and plain value of its state, and "
            f"{shown(self._decoder, 200)} with {shown(self._chain, 200)} makes {new} of {old}. Use it "
            "without "
            "capture=True."
        )


def start_captured(
    model: Model, prompt: Prompt, decoder: Decoder[Any], capacity: int
) -> tuple[Session, Float32[Tensor, "rows vocab"]]:
    """The model's session whose passes are captured.

    Raises:
        DecodekitError: If decoder or model cannot be captured; the message says which.
    """
    if decoder.outputs_spec:
        raise DecodekitError(
            f"decode: with capture=True the model must show nothing but logits, and {type(decoder).__name__} "
            f"needs {decoder.outputs_spec}. Use it without capture=True."
        )
    if not isinstance(model, CapturableModel):
        raise DecodekitError(
            f"decode: capture=True needs a model with start_captured(), and {shown(model)} has none. Use "
            "dk.HFModel, or write that method: see decodekit.CapturableModel."
        )
    return model.start_captured(prompt, rows_per_prompt=decoder.rows_per_prompt, capacity=capacity)


def check_capturable(*parts: object) -> None:
    """Raises if a part of a run, or of those it is made of, says that it works on the host."""
    for part in parts_of(*parts):
        on_host = getattr(part, "capturable", True) is False
        if on_host and not list(_made_of_uncapturable(part)):
            raise DecodekitError(
                f"decode: with capture=True nothing may work on the host, and {type(part).__name__} does. "
                "Use it without capture=True."
            )


def _made_of_uncapturable(part: object) -> Iterator[object]:
    """What of a part is to blame; nothing: the part itself."""
    return (inner for inner in parts_of(part) if inner is not part and not getattr(inner, "capturable", True))


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:  # noqa: ANN401 - any pytree
    """The same pytree with other tensors."""
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def _numbers(parts: list[object]) -> list[str]:
    """What Python could count in parts of a run: a replay would count no further."""
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
