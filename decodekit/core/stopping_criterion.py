"""Stopping criteria: the contract, and combinations of several with `|` and `&`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.pytrees import Memory
from decodekit.core.validation import CheckedOptions, set_fields, shown
from decodekit.core.vocabulary import Vocabulary

# Types that signatures of criteria repeat.
LogProbs = Float32[Tensor, " rows"]
Finished = Bool[Tensor, " rows"]


class StoppingContext(NamedTuple):
    """The vocabulary of the model, and the time of the call of `decode`."""

    vocabulary: Vocabulary
    started: float  # by `time.monotonic`, in seconds


class StoppingCriterion(CheckedOptions, ABC):
    """Decides after every token whether a hypothesis is finished.

    Like a processor, it is a pair of pure functions: memory is passed in and returned, and follows its
    hypothesis when beams are reordered. Under beam search a hypothesis that a criterion finishes competes by
    its score, like one that ends with an end id. Beam search considers extra candidates for end ids only: if
    criteria finish more than half of the candidates, fewer hypotheses than beams continue.

    Example:
        >>> class Three(dk.StoppingCriterion):
        ...     reason = "three"
        ...     def init(self, history, run): return history.position + 3
        ...     def apply(self, history, log_probs, memory):
        ...         return (history.position >= memory).expand(len(history.tokens)), memory
        >>> dk.decode(dk.load(), "Once", dk.Greedy(), stop=Three(), max_new_tokens=9).finish_reason
        [['three']]

    Hugging Face:
        `StoppingCriteria`. Under beam search it sees the candidates, which are more than the
        hypotheses, and the result does not name the criterion.
    """

    capturable: bool = True
    """False for code that must run on the host, such as code that reads text."""

    batch_independent: bool = False
    """True if no row depends on another. Prompts can then be decoded in several batches, and be evicted when
    they are finished."""

    @property
    @abstractmethod
    def reason(self) -> str:
        """The `Decoded.finish_reason` of the hypotheses it finishes. A class attribute is enough."""

    @abstractmethod
    def init(self, history: History, run: StoppingContext) -> Memory:
        """Return the memory before the first new token; `()` for none."""

    @abstractmethod
    def apply(self, history: History, log_probs: LogProbs, memory: Memory) -> tuple[Finished, Memory]:
        """Return the finished rows and the new memory; the result for rows finished earlier is ignored.

        Args:
            history: Every hypothesis, its newest token included.
            log_probs: The model's own log-probability of that token, in nats.
            memory: From `init` or the step before.
        """

    def trim(self, text: str, before: str, *, fired: bool) -> str | None:  # noqa: ARG002 - a default
        """Return the text as it should be returned, or None if the criterion does not cut it.

        Args:
            text: A finished hypothesis's new text.
            before: The same text without its newest token.
            fired: True if this criterion finished the hypothesis.
        """
        return None

    def held_back(self, text: str) -> int:  # noqa: ARG002 - a default
        """Count the last characters of an unfinished text that may still be cut, and are not streamed yet."""
        return 0

    @final
    def __or__(self, other: "StoppingCriterion") -> "AnyOf":
        """`a | b` is `AnyOf(a, b)`."""
        return AnyOf(self, other)

    @final
    def __and__(self, other: "StoppingCriterion") -> "AllOf":
        """`a & b` is `AllOf(a, b)`."""
        return AllOf(self, other)


@dataclass(frozen=True, init=False, repr=False)
class _Combination(StoppingCriterion):
    """Several criteria as one, each with a memory of its own."""

    criteria: tuple[StoppingCriterion, ...]

    batch_independent = True
    needs_all: ClassVar[bool]

    def __init__(self, *criteria: StoppingCriterion) -> None:
        who = type(self).__name__
        for criterion in criteria:
            if not isinstance(criterion, StoppingCriterion):
                raise TypeError(
                    f"{who}: every criterion must be a StoppingCriterion, got {shown(criterion)}."
                )
        if not criteria:
            raise TypeError(f"{who}: there must be at least one criterion, got none.")
        set_fields(self, criteria=criteria, capturable=all(criterion.capturable for criterion in criteria))

    @property
    @override
    def reason(self) -> str:
        return (" and " if self.needs_all else " or ").join(criterion.reason for criterion in self.criteria)

    @override
    def init(self, history: History, run: StoppingContext) -> Memory:
        return tuple(criterion.init(history, run) for criterion in self.criteria)

    @override
    def apply(self, history: History, log_probs: LogProbs, memory: Memory) -> tuple[Finished, Memory]:
        pairs = zip(self.criteria, memory, strict=True)
        results = [criterion.apply(history, log_probs, part) for criterion, part in pairs]
        combine = torch.logical_and if self.needs_all else torch.logical_or
        return reduce(combine, (rows for rows, _ in results)), tuple(part for _, part in results)

    @override
    def held_back(self, text: str) -> int:
        return max(criterion.held_back(text) for criterion in self.criteria)

    @override
    def trim(self, text: str, before: str, *, fired: bool) -> str | None:
        """Return the text cut by the first criterion that cuts it; under `AllOf`, only if it fired."""
        if self.needs_all and not fired:
            return None
        cuts = (criterion.trim(text, before, fired=fired) for criterion in self.criteria)
        return next((cut for cut in cuts if cut is not None), None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.criteria))})"


@final
@dataclass(frozen=True, init=False, repr=False)
class AnyOf(_Combination):
    """Finishes a hypothesis as soon as one of several criteria does.

    `decode(stop=AnyOf(a, b))` is `decode(stop=[a, b])`: `finish_reason` is that of the first criterion that
    holds. Inside `AllOf`, `finish_reason` joins all reasons, as in "time or string".

    Args:
        criteria: At least one, in the order of precedence.

    Raises:
        TypeError: If one of them is not a `StoppingCriterion`, or there is none.

    Example:
        >>> dk.MaxTime(60) | dk.StopStrings("!")
        AnyOf(MaxTime(seconds=60), StopStrings(strings=('!',), include=False))

    Hugging Face:
        `StoppingCriteriaList`.
    """

    needs_all = False


@final
@dataclass(frozen=True, init=False, repr=False)
class AllOf(_Combination):
    """Finishes a hypothesis at the first token after which all of several criteria hold.

    Args:
        criteria: At least one; they must hold after the same token.

    Raises:
        TypeError: If one of them is not a `StoppingCriterion`, or there is none.

    Example:
        >>> (dk.StopStrings(".") & dk.MaxNewTokens(20)).reason
        'string and length'

    Hugging Face:
        None.
    """

    needs_all = True


def flatten(criterion: StoppingCriterion) -> tuple[StoppingCriterion, ...]:
    """Return the criteria of an `AnyOf`, nested ones included, in order."""
    if not isinstance(criterion, AnyOf):
        return (criterion,)
    return tuple(leaf for part in criterion.criteria for leaf in flatten(part))
