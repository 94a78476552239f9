"""The contract of drafts."""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.prompt import Prompt
from decodekit.core.validation import CheckedOptions
from decodekit.models.protocols import Model


class Proposal(NamedTuple):
    """Proposed next tokens.

    Attributes:
        tokens: The tokens of every row, at most `max_tokens` each.
        probs: The distribution that each token was drawn from, given the tokens before it. None: the draft is
            deterministic. Samples are correct only if the tokens were drawn from exactly these distributions.

    Example:
        >>> Proposal([[5, 7], []])
        Proposal(tokens=[[5, 7], []], probs=None)
    """

    tokens: list[list[int]]
    probs: Float32[Tensor, "rows columns vocab"] | None = None


@runtime_checkable
class TokenChooser(Protocol):
    """Chooses tokens from a draft's logits as the run chooses its own: by argmax, or by a draw."""

    def __call__(
        self, logits: Float32[Tensor, "rows vocab"], proposed: list[list[int]]
    ) -> tuple[Int64[Tensor, " rows"], Float32[Tensor, "rows vocab"] | None]:
        """The next token of every row, and the distribution that it was drawn from, if it was drawn.

        Args:
            logits: The draft's logits of the next token.
            proposed: The tokens proposed for each row so far in this round.
        """


class DraftSession(ABC):
    """A run of a draft over a batch."""

    @abstractmethod
    def propose(self, emitted: list[list[int]], max_tokens: list[int], choose: TokenChooser) -> Proposal:
        """Propose the next tokens of every row.

        Args:
            emitted: The tokens that each row emitted since the last call: the accepted part of its proposal,
                and one token of the model.
            max_tokens: The maximum number of tokens to propose for each row; 0 for finished rows.
            choose: Turns logits into tokens, for drafts that have logits.
        """


class Draft(CheckedOptions, ABC):
    """Proposes tokens for speculative decoding. Holds the configuration; a run of it is a `DraftSession`.

    A draft affects the speed of decoding, never the distribution of results: see `Speculative`. Without
    sampling, the tokens are exactly those of `Greedy`.

    Example:
        A draft that expects every token to occur twice:

        >>> class Twice(dk.Draft):
        ...     def start(self, model, prompt, *, rows_per_prompt, capacity): return TwiceSession()
        >>> class TwiceSession(dk.DraftSession):
        ...     def propose(self, emitted, max_tokens, choose):
        ...         return dk.Proposal([row[-1:][:most] for row, most in zip(emitted, max_tokens)])
        >>> dk.decode(dk.load(), "Once", dk.Speculative(Twice()), max_new_tokens=4).lengths
        tensor([[4]])
    """

    @abstractmethod
    def start(self, model: Model, prompt: Prompt, *, rows_per_prompt: int, capacity: int) -> DraftSession:
        """Start a run of the draft.

        Args:
            model: The model that verifies.
            prompt: The prompts, left-padded.
            rows_per_prompt: Samples per prompt; rows are prompt-major.
            capacity: Maximum length of prompts and continuations, in columns.
        """
