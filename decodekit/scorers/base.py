"""The contract of scorers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from jaxtyping import Float, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits
from decodekit.core.pytrees import Memory
from decodekit.models.model_outputs import LOGITS_ONLY, ModelOutputsSpec


@dataclass(frozen=True, eq=False)
class ExtendedHypotheses:
    """One new token of some hypotheses, for a scorer that remembers the way.

    Attributes:
        parents: What the hypotheses that are continued have said.
        source_rows: The row of `parents` that each hypothesis continues.
        tokens: What each says next.
        log_probs: What that adds to each one's sum: the log-probability after the processors, in nats.
        attention: What the model attended to when it gave those, if the scorer's `outputs_spec` asks for it.
    """

    parents: History
    source_rows: Int64[Tensor, " hyps"]
    tokens: Int64[Tensor, " hyps"]
    log_probs: Float[Tensor, " hyps"]
    attention: Float[Tensor, "hyps context"] | None = None

    def history(self) -> History:
        """What every hypothesis has said, its new token included."""
        return self.parents.take(self.source_rows).append(self.tokens)


class PathScorer(ABC):
    """What a hypothesis is worth inside the search, where that takes more than a sum and a length.

    It carries memory along the path as a processor does: `init` makes it for every row, `extend` takes in one
    new token, and the search sees to it that it follows its hypothesis. All methods are pure, and blind to
    other rows. A scorer that needs only the sum and the length is a `Scorer`, which is simpler.

    Example:
        Ranks by the least likely token:

        >>> class Weakest(dk.PathScorer):
        ...     def init(self, history, limits): return torch.zeros(len(history.tokens))
        ...     def update(self, extended, memory): return torch.minimum(memory, extended.log_probs)
        ...     def score(self, log_probs, lengths, memory): return memory
        ...     def upper_bound(self, log_probs, lengths, max_length, memory): return memory
    """

    batch_independent: bool = False
    """True where every hypothesis is treated alone: see `Decoder.batch_independent`."""

    @property
    def stepwise(self) -> bool:
        """Whether the search ranks unfinished hypotheses by `partial_score` too; by default by log-probability.

        It then looks at as many continuations as it would otherwise, those that are best by their parent's
        `partial_score` and their own log-probability, and keeps the best of them by their own `guide`.
        """
        return False

    @property
    def stateful(self) -> bool:
        """Whether there is a memory; where only sum and length count, `extend` need not be called."""
        return True

    @property
    def outputs_spec(self) -> ModelOutputsSpec:
        """What the model must show beside its logits. By default nothing."""
        return LOGITS_ONLY

    @abstractmethod
    def init(self, history: History, limits: Limits) -> Memory:
        """The memory of every row before the first new token: any nest; its tensors lead with rows."""

    @abstractmethod
    def update(self, extended: ExtendedHypotheses, memory: Memory) -> Memory:
        """The memory of hypotheses that have grown by a token.

        Args:
            extended: The tokens.
            memory: Of the hypotheses before, one row for each of `extended.tokens`.
        """

    @abstractmethod
    def score(
        self, log_probs: Float[Tensor, " hyps"], lengths: Int64[Tensor, " hyps"], memory: Memory
    ) -> Float[Tensor, " hyps"]:
        """The worth of hypotheses, if they end here; minus infinity: such a text is not allowed.

        Args:
            log_probs: Sums over the tokens, in nats.
            lengths: New tokens, the end id included, at least 1.
            memory: What `extend` has kept of them.
        """

    @abstractmethod
    def upper_bound(
        self,
        log_probs: Float[Tensor, " hyps"],
        lengths: Int64[Tensor, " hyps"],
        max_length: int,
        memory: Memory,
    ) -> Float[Tensor, " hyps"]:
        """A number that neither a hypothesis nor any continuation of it scores more than.

        Each further token adds at most 0 to `log_probs`. Infinity is honest where nothing better is
        known, and switches proofs off.

        Args:
            log_probs: Sums so far, at most 0.
            lengths: New tokens so far, at least 1.
            max_length: New tokens at most.
            memory: What `extend` has kept of them.
        """

    def partial_score(
        self,
        log_probs: Float[Tensor, " hyps"],
        lengths: Int64[Tensor, " hyps"],  # noqa: ARG002
        memory: Memory,  # noqa: ARG002
    ) -> Float[Tensor, " hyps"]:
        """What unfinished hypotheses of one length are ranked by, where the scorer is `stepwise`."""
        return log_probs


class Scorer(PathScorer):
    """What a hypothesis is worth inside the search, from its summed log-probability and its length.

    Both methods are elementwise and pure, over tensors of any one shape.

    Example:
        >>> class WordReward(dk.Scorer):
        ...     def __call__(self, log_probs, lengths): return log_probs + 0.5 * lengths
        ...     def bound(self, log_probs, lengths, max_length): return log_probs + 0.5 * max_length
    """

    @abstractmethod
    def __call__(
        self, log_probs: Float[Tensor, "*shape"], lengths: Int64[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """The worth of hypotheses of this summed log-probability and length.

        Minus infinity says that such a text is not allowed: it is never returned.

        Args:
            log_probs: Sums over the tokens, in nats.
            lengths: New tokens, the end id included, at least 1.
        """

    @abstractmethod
    def bound(
        self, log_probs: Float[Tensor, "*shape"], lengths: Int64[Tensor, "*shape"], max_length: int
    ) -> Float[Tensor, "*shape"]:
        """A number that neither a hypothesis nor any continuation scores more than.

        Each further token adds at most 0 to `log_probs`. Infinity is honest where nothing better is
        known, and switches proofs off. A greater sum must not have a lower bound.

        Args:
            log_probs: Sums so far, at most 0.
            lengths: New tokens so far, at least 1.
            max_length: New tokens at most.
        """

    @final
    @property
    def stateful(self) -> bool:
        """No."""
        return False

    @final
    def init(self, history: History, limits: Limits) -> Memory:  # noqa: ARG002 - the contract's signature
        """Nothing to remember."""
        return ()

    @final
    def update(self, extended: ExtendedHypotheses, memory: Memory) -> Memory:  # noqa: ARG002
        """Nothing to remember."""
        return memory

    @final
    def score(
        self,
        log_probs: Float[Tensor, " hyps"],
        lengths: Int64[Tensor, " hyps"],
        memory: Memory,  # noqa: ARG002
    ) -> Float[Tensor, " hyps"]:
        """The scorer's value."""
        return self(log_probs, lengths)

    @final
    def upper_bound(
        self,
        log_probs: Float[Tensor, " hyps"],
        lengths: Int64[Tensor, " hyps"],
        max_length: int,
        memory: Memory,  # noqa: ARG002
    ) -> Float[Tensor, " hyps"]:
        """The scorer's bound."""
        return self.bound(log_probs, lengths, max_length)
