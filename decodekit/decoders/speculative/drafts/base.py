"""The contract of drafts."""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.prompt import Prompt
from decodekit.models.protocols import Model


class Proposal(NamedTuple):
    """What a draft thinks comes next.

    Attributes:
        tokens: The next tokens of every row, as many as it likes up to what was asked for.
        probs: The distribution that each of them was drawn from, given those before it. None: the draft
            does not draw, and would have proposed these whatever the chance. Needed where tokens are
            sampled: what is accepted is only right if they were drawn from just these.

    Example:
        >>> Proposal([[5, 7], []])
        Proposal(tokens=[[5, 7], []], probs=None)
    """

    tokens: list[list[int]]
    probs: Float32[Tensor, "rows columns vocab"] | None = None


@runtime_checkable
class Choose(Protocol):
    """Chooses tokens by a draft's logits as the run would: by their argmax, or by a draw."""

    def __call__(
        self, logits: Float32[Tensor, "rows vocab"], drafted: list[list[int]]
    ) -> tuple[Int64[Tensor, " rows"], Float32[Tensor, "rows vocab"] | None]:
        """The next token of every row, and the distribution it was drawn from if it was.

        Args:
            logits: The draft's, for the next token.
            drafted: What has been proposed for each row since it was asked.
        """


class DraftSession(ABC):
    """One run of a draft over one batch."""

    @abstractmethod
    def propose(self, said: list[list[int]], most: list[int], choose: Choose) -> Proposal:
        """What every row may say next.

        Args:
            said: What each row has said since the last call: proposals of that call that were accepted,
                and a token of the model's own.
            most: How many tokens to propose for each row at most; 0 for rows that have ended.
            choose: Turns logits into tokens, for drafts that have logits.
        """


class Draft(ABC):
    """Proposes tokens for speculative decoding. Holds its configuration; a run of it is a `DraftSession`.

    A draft decides how fast the text comes, and never what it says: proposals that the model would not have
    chosen are refused.

    Example:
        A draft that expects every token to be said twice:

        >>> class Twice(dk.Draft):
        ...     def start(self, model, prompt, *, rows_per_prompt, capacity): return TwiceSession()
        >>> class TwiceSession(dk.DraftSession):
        ...     def propose(self, said, most, choose):
        ...         return dk.Proposal([row[-1:][:allowed] for row, allowed in zip(said, most)])
        >>> dk.decode(dk.load(), "Once", dk.Speculative(Twice()), max_new_tokens=4).lengths
        tensor([[4]])
    """

    @abstractmethod
    def start(self, model: Model, prompt: Prompt, *, rows_per_prompt: int, capacity: int) -> DraftSession:
        """A run of the draft.

        Args:
            model: The run's own model.
            prompt: The prompts, left-padded.
            rows_per_prompt: Samples of each prompt; rows stand prompt-major.
            capacity: Columns that prompts and continuations take at most.
        """
