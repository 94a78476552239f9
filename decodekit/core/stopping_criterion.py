"""The contract of stopping criteria."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple, final

from jaxtyping import Bool, Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.pytrees import Memory
from decodekit.core.vocabulary import Vocabulary

if TYPE_CHECKING:
    from decodekit.stopping.all_of import AllOf
    from decodekit.stopping.any_of import AnyOf


class StoppingContext(NamedTuple):
    """What a criterion may know of the run it stops.

    Attributes:
        vocabulary: What the model's ids mean.
        started: When `decode` was called, on the clock of `time.monotonic`, in seconds.
    """

    vocabulary: Vocabulary
    started: float


class StoppingCriterion(ABC):
    """Says of every hypothesis whether it is finished, token by token.

    A pair of pure functions, as a processor is: what is remembered is passed in and handed back, and
    follows its hypothesis when beams are reordered. Under beam search a finished hypothesis competes by
    its score with the others that are finished, exactly as if it had said an end id. Only the end ids
    widen what a beam search looks at, though: where more than half of its candidates are finished by
    criteria, fewer hypotheses than beams go on to the next step.

    Example:
        >>> class Three(dk.StoppingCriterion):
        ...     reason = "three"
        ...     def init(self, history, run): return history.position + 3
        ...     def apply(self, history, log_probs, memory):
        ...         return (history.position >= memory).expand(len(history.tokens)), memory
        >>> dk.decode(dk.load(), "Once", dk.Greedy(), stop=Three(), max_new_tokens=9).finish_reason
        [['three']]

    Hugging Face:
        `StoppingCriteria`, which under beam search is asked about candidates, more of them than there
        are hypotheses, and cannot say which criterion it was.
    """

    capturable: bool = True
    """False only for code that must run on the host, such as one that reads text."""

    batch_independent: bool = False
    """True where every row is treated by itself, whichever others there are: then prompts can be decoded in
    several batches, and leave theirs when they are finished."""

    @property
    @abstractmethod
    def reason(self) -> str:
        """What `Decoded.finish_reason` says of the hypotheses it finished. A class attribute will do."""

    @abstractmethod
    def init(self, history: History, run: StoppingContext) -> Memory:
        """What to remember before the first new token; `()` for nothing."""

    @abstractmethod
    def apply(
        self, history: History, log_probs: Float32[Tensor, " rows"], memory: Memory
    ) -> tuple[Bool[Tensor, " rows"], Memory]:
        """Which rows are finished now, and what to remember.

        Rows that had finished before are asked too, as long as others go on; their answer does not count.

        Args:
            history: What every hypothesis has said, its newest token included.
            log_probs: The model's own log-probability of that token, in nats.
            memory: What `init` or the step before left.
        """

    def trim(self, text: str, before: str, *, fired: bool) -> str | None:  # noqa: ARG002 - for those that cut
        """The text as it is returned, if the criterion is one that cuts it; else None.

        Args:
            text: A finished hypothesis's new text.
            before: The same without its newest token.
            fired: Whether it was this criterion that finished it.
        """
        return None

    def held_back(self, text: str) -> int:  # noqa: ARG002 - for those that cut
        """How many of the last characters of an unfinished text may yet be cut: they are not streamed."""
        return 0

    @final
    def __or__(self, other: "StoppingCriterion") -> "AnyOf":
        """`a | b` is `AnyOf(a, b)`."""
        from decodekit.stopping.any_of import AnyOf  # noqa: PLC0415 - AnyOf is a criterion itself

        return AnyOf(self, other)

    @final
    def __and__(self, other: "StoppingCriterion") -> "AllOf":
        """`a & b` is `AllOf(a, b)`."""
        from decodekit.stopping.all_of import AllOf  # noqa: PLC0415 - AllOf is a criterion itself

        return AllOf(self, other)


def check_reason(who: str, reason: object) -> None:
    """Raises a `ValueError` unless a reason is text of some length."""
    if not isinstance(reason, str) or not reason:
        raise ValueError(f"{who}: reason must be text of some length, got {reason!r:.80}.")


def check_criteria(who: str, criteria: tuple[object, ...]) -> None:
    """Raises a `TypeError` unless all are stopping criteria, and there is one."""
    for criterion in criteria:
        if not isinstance(criterion, StoppingCriterion):
            raise TypeError(f"{who}: every criterion must be a StoppingCriterion, got {criterion!r:.80}.")
    if not criteria:
        raise TypeError(f"{who}: there must be at least one criterion, got none.")
