"""Hugging Face's processors and criteria, in decodekit's loop."""

import inspect
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, final, overload

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.stopping_criterion import AnyOf, StoppingContext, StoppingCriterion
from decodekit.core.validation import shown
from decodekit.errors import DecodekitError
from decodekit.processors.base import Chain, LogitsProcessor, Scores

# These store state per row on the object, where no beam search can reorder it.
_HOLDS_ROWS = {
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": "ClassifierFreeGuidance",
    "SynthIDTextWatermarkLogitsProcessor": "SynthID",
}


class NotKept:
    """Placeholder for the scores of all steps, which decodekit does not keep: raises at every access."""

    def _refuse(self, *_: object) -> NoReturn:
        raise DecodekitError(
            "FromHF: decodekit passes no scores to a criterion of transformers, and this one reads "
            "them. Use dk.Confidence, or a dk.StoppingCriterion, which is given the token's log-probability."
        )

    __getitem__ = __len__ = _refuse  # the first of these serves `iter` too


NOT_KEPT = NotKept()


class Follows(NamedTuple):
    """Number of columns written, counted without the device, and the old row that each row continues."""

    columns: int
    rows: Int64[Tensor, " rows"]


@final
@dataclass(frozen=True)
class HFProcessor(LogitsProcessor):
    """A Hugging Face processor in decodekit's loop: made by `FromHF`.

    Its `input_ids` are all columns of the sequence, left padding included, as in `generate`.
    """

    processor: Any

    capturable = False  # its input grows, and it may work on the host

    def init(self, history: History) -> Follows:
        """The length of the prompts."""
        return Follows(int(history.position), _own_rows(history))

    def apply(self, history: History, scores: Scores, memory: Follows) -> tuple[Scores, Follows]:
        """The processed scores."""
        name = type(self.processor).__name__
        own = _own_rows(history)
        if name in _HOLDS_ROWS and not torch.equal(memory.rows, own):
            raise DecodekitError(
                f"FromHF: {name} stores state per row on the object, which does not follow beams when they "
                f"are reordered, so its scores would be wrong. Use {_HOLDS_ROWS[name]}."
            )
        # Many processors write to the scores they are given.
        processed = self.processor(history.tokens[:, : memory.columns], scores.clone())
        return processed, Follows(memory.columns + 1, own)

    def __repr__(self) -> str:
        return f"FromHF({_name(self.processor)})"


@final
@dataclass(frozen=True)
class HFCriterion(StoppingCriterion):
    """A Hugging Face criterion in decodekit's loop: made by `FromHF`.

    Its `input_ids` are all columns of the text, left padding included, and its `scores` raise at every
    access. Beam search calls it several times per step, for as many hypotheses as beams, so it must not count
    calls.
    """

    criterion: Any
    scores: Any = None

    capturable = False  # as HFProcessor

    @property
    def reason(self) -> str:
        """The class's name."""
        return type(self.criterion).__name__

    def init(self, history: History, run: StoppingContext) -> int:  # noqa: ARG002 - the contract's signature
        """The length of the prompts."""
        return int(history.position)

    def apply(
        self, history: History, log_probs: Float32[Tensor, " rows"], memory: int
    ) -> tuple[Bool[Tensor, " rows"], int]:
        """True for rows that the criterion stops."""
        said = self.criterion(history.tokens[:, : memory + 1], self.scores)
        stops = torch.as_tensor(said, dtype=torch.bool, device=log_probs.device)
        return stops.expand(len(log_probs)), memory + 1

    def __repr__(self) -> str:
        return f"FromHF({_name(self.criterion)})"


@overload
def FromHF(part: LogitsProcessor) -> LogitsProcessor: ...
@overload
def FromHF(part: StoppingCriterion) -> StoppingCriterion: ...
@overload
def FromHF(part: Any) -> Any: ...
def FromHF(part: Any) -> Any:  # noqa: N802 - named like the classes it makes
    """A Hugging Face processor or stopping criterion, or a list of them, for decodekit's loop.

    A stateless part is correct under every decoder. A part that stores state per row on the object (guidance,
    SynthID) is correct while rows stay in place; when beams reorder rows, it is refused.

    Args:
        part: A `transformers.LogitsProcessor` or `StoppingCriteria`, any callable with the same signature, or
            a list of processors or of criteria. A decodekit part is returned as it is.

    Raises:
        TypeError: If `part` is none of these, or takes more arguments than ids and scores.

    Example:
        >>> theirs = transformers.TopKLogitsWarper(2)
        >>> dk.decode(dk.load(), "The", dk.Greedy(), dk.compat.hf.FromHF(theirs), max_new_tokens=1).lengths
        tensor([[1]])
    """
    if isinstance(part, LogitsProcessor | StoppingCriterion):
        return part
    if isinstance(part, list):
        parts: list[Any] = [FromHF(one) for one in part]
        criteria = [one for one in parts if isinstance(one, StoppingCriterion)]
        return AnyOf(*criteria) if criteria else Chain(*parts)
    from transformers import StoppingCriteria  # noqa: PLC0415 - slow, needed only here

    if not callable(part) or isinstance(part, type):
        raise TypeError(
            f"FromHF: part must be a processor or a criterion of transformers, got {shown(part)}."
        )
    asked = [
        parameter.name
        for parameter in inspect.signature(part).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
    ]
    if len(asked) > 2:  # noqa: PLR2004 - ids and scores
        raise TypeError(
            f"FromHF: {_name(part)} must take input_ids and scores only, got the arguments {asked}."
        )
    if isinstance(part, StoppingCriteria):
        if type(part).__name__ == "ConfidenceCriteria":
            raise TypeError("FromHF: ConfidenceCriteria reads the first row only. Use dk.Confidence.")
        return HFCriterion(part)
    return HFProcessor(part)


def _own_rows(history: History) -> Int64[Tensor, " rows"]:
    return torch.arange(len(history.tokens), device=history.tokens.device)


def _name(part: object) -> str:
    """The class of a part, with its numbers as arguments."""
    values = {
        name: value
        for name, value in getattr(part, "__dict__", {}).items()
        if isinstance(value, int | float | str)
    }
    return f"{type(part).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"
