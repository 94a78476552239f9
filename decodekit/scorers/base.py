"""The contract of scorers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from jaxtyping import Float, Int64
from torch import Tensor
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.pytrees import Memory
from decodekit.core.validation import CheckedOptions, check_type, is_number
from decodekit.models.protocols import LOGITS_ONLY, ModelOutputsSpec

# Types for the signatures of scorers: numbers and lengths per hypothesis, or of any shape.
Values = Float[Tensor, " hyps"]
Lengths = Int64[Tensor, " hyps"]
AnyValues = Float[Tensor, "*shape"]
AnyLengths = Int64[Tensor, "*shape"]


@dataclass(frozen=True, eq=False)
class ExtendedHypotheses:
    """Hypotheses with one new token each: the argument of `PathScorer.update`.

    Attributes:
        parents: The hypotheses without their new tokens.
        source_rows: The row of `parents` that each hypothesis extends.
        tokens: The new tokens.
        log_probs: Their log-probabilities after the processors, in nats.
        attention: The attention of the pass that predicted the new tokens, if `outputs_spec` requests it.
    """

    parents: History
    source_rows: Int64[Tensor, " hyps"]
    tokens: Int64[Tensor, " hyps"]
    log_probs: Float[Tensor, " hyps"]
    attention: Float[Tensor, "hyps context"] | None = None

    def history(self) -> History:
        """Return every hypothesis, its new token included."""
        return self.parents.take(self.source_rows).append(self.tokens)


class PathScorer(CheckedOptions, ABC):
    """Scores hypotheses by more than their summed log-probability and length.

    As for a processor, its memory follows each hypothesis: `init` creates it for every row, `update` adds one
    token. All methods are pure, and no row depends on another. If the sum and the length are enough, use
    `Scorer`, which is simpler.

    Example:
        Ranks by the least likely token:

        >>> class Weakest(dk.PathScorer):
        ...     def init(self, history, limits): return torch.zeros(len(history.tokens))
        ...     def update(self, extended, memory): return torch.minimum(memory, extended.log_probs)
        ...     def score(self, log_probs, lengths, memory): return memory
        ...     def upper_bound(self, log_probs, lengths, max_length, memory): return memory
    """

    batch_independent: bool = False
    """True if no hypothesis depends on another: see `Decoder.batch_independent`."""

    @property
    def stepwise(self) -> bool:
        """True if the search ranks unfinished hypotheses by `partial_score` in place of log-probability.

        The expansion ranks continuations by the parent's `partial_score` plus the token's log-probability,
        and picks the same number of them. The search then ranks these by their own `partial_score`.
        """
        return False

    @property
    def stateful(self) -> bool:
        """True if there is a memory. Without one, `update` need not be called."""
        return True

    @property
    def outputs_spec(self) -> ModelOutputsSpec:
        """Outputs that the model must provide besides its logits. By default none."""
        return LOGITS_ONLY

    @abstractmethod
    def init(self, history: History, limits: Limits) -> Memory:
        """Return the memory of every row before the first new token: any nest of tensors by row."""

    @abstractmethod
    def update(self, extended: ExtendedHypotheses, memory: Memory) -> Memory:
        """Return the memory of the extended hypotheses.

        Args:
            extended: The hypotheses and their new tokens.
            memory: Memory of the hypotheses without the new tokens, one row for each of `extended.tokens`.
        """

    @abstractmethod
    def score(self, log_probs: Values, lengths: Lengths, memory: Memory) -> Values:
        """Score hypotheses that end here; minus infinity forbids a hypothesis, which is then never returned.

        Args:
            log_probs: Sums over the tokens, in nats.
            lengths: New tokens, the end id included, at least 1.
            memory: Memory of the hypotheses.
        """

    @abstractmethod
    def upper_bound(self, log_probs: Values, lengths: Lengths, max_length: int, memory: Memory) -> Values:
        """Bound the scores of hypotheses and of all their continuations from above.

        Each further token adds at most 0 to `log_probs`. Infinity is a valid bound, which proves nothing.

        Args:
            log_probs: Sums so far, at most 0.
            lengths: New tokens so far, at least 1.
            max_length: Largest number of new tokens.
            memory: Memory of the hypotheses.
        """

    def partial_score(self, log_probs: Values, lengths: Lengths, memory: Memory) -> Values:  # noqa: ARG002
        """Score unfinished hypotheses of one length; used if the scorer is `stepwise`."""
        return log_probs


class Scorer(PathScorer):
    """Values hypotheses by their summed log-probability, in nats, and their length, the end id included.

    Both methods are elementwise and pure, over tensors of any one shape.

    Example:
        >>> class WordReward(dk.Scorer):
        ...     def __call__(self, log_probs, lengths): return log_probs + 0.5 * lengths
        ...     def bound(self, log_probs, lengths, max_length): return log_probs + 0.5 * max_length
    """

    stateful = False

    @abstractmethod
    def __call__(self, log_probs: AnyValues, lengths: AnyLengths) -> AnyValues:
        """Score hypotheses that end here, from sums of log-probabilities and lengths."""

    @abstractmethod
    def bound(self, log_probs: AnyValues, lengths: AnyLengths, max_length: int) -> AnyValues:
        """Bound the scores of hypotheses and continuations. The bound must not fall as the sum rises."""

    @final
    @override
    def init(self, history: History, limits: Limits) -> Memory:
        return ()

    @final
    @override
    def update(self, extended: ExtendedHypotheses, memory: Memory) -> Memory:
        return memory

    @final
    @override
    def score(self, log_probs: Values, lengths: Lengths, memory: Memory) -> Values:
        return self(log_probs, lengths)

    @final
    @override
    def upper_bound(self, log_probs: Values, lengths: Lengths, max_length: int, memory: Memory) -> Values:
        return self.bound(log_probs, lengths, max_length)


def check_scorer_type(who: str, name: str, scorer: object) -> None:
    """Raise a `TypeError` unless an argument is a scorer."""
    advice = ""
    if is_number(scorer):
        advice = f"Use dk.LengthPenalty({scorer})."
    elif callable(scorer):
        advice = "Use dk.ScoreFunction(function, upper)."
    check_type(who, name, scorer, PathScorer, "a Scorer or PathScorer such as LengthPenalty(1.0)", advice)
