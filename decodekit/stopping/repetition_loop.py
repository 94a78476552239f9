"""Texts that go round in circles."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.stopping_criterion import StoppingContext, StoppingCriterion
from decodekit.core.validation import is_count


@final
@dataclass(frozen=True)
class RepetitionLoop(StoppingCriterion):
    r"""Finishes a hypothesis whose new text ends in one block of tokens said several times in a row.

    Holds if for some period $1 \le q \le$ `longest` the last $q \cdot$ `times` new tokens are one block
    of q tokens, `times` times over.

    Args:
        times: How often in a row, at least 2. Usual values: 3-5.
        longest: Longest block, in tokens, at least 1.

    Raises:
        ValueError: If either is not such an integer.

    Example:
        >>> model = dk.testing.MarkovModel([[0.1, 0.9], [0.9, 0.1]])  # says 1, 0, 1, 0, ...
        >>> out = dk.decode(model, [[0]], dk.Greedy(), stop=RepetitionLoop(3), max_new_tokens=99)
        >>> out.hypotheses(), out.finish_reason
        ([[[1, 0, 1, 0, 1, 0]]], [['loop']])

    Source:
        Holtzman et al., 2020, https://arxiv.org/abs/1904.09751, section 3, describe the loops.

    Hugging Face:
        None.
    """

    times: int = 3
    longest: int = 32

    reason: ClassVar[str] = "loop"

    batch_independent = True

    def __post_init__(self) -> None:
        if not is_count(self.times, 2):
            raise ValueError(f"RepetitionLoop: times must be an integer of at least 2, got {self.times!r}.")
        if not is_count(self.longest, 1):
            raise ValueError(
                f"RepetitionLoop: longest must be an integer of at least 1, got {self.longest!r}."
            )

    def init(self, history: History, run: StoppingContext) -> Int64[Tensor, ""]:  # noqa: ARG002 - the contract's signature
        """The prompt's length in columns."""
        return history.position.clone()

    def apply(
        self,
        history: History,
        log_probs: Float32[Tensor, " rows"],
        memory: Int64[Tensor, ""],
    ) -> tuple[Bool[Tensor, " rows"], Int64[Tensor, ""]]:
        """Rows that end in a loop."""
        device = log_probs.device
        periods = torch.arange(1, self.longest + 1, device=device)
        back = torch.arange(self.longest * (self.times - 1), device=device)
        # The token k places from the end, and the one a period before it: [periods back]
        columns = history.position - 1 - back
        earlier = columns - periods[:, None]
        inside = earlier >= memory
        # A finished run may go on past the last column; what it says there does not count.
        last = history.tokens.shape[1] - 1
        recent = history.tokens.index_select(1, columns.clamp(0, last))
        before = history.tokens.index_select(1, earlier.clamp(0, last).flatten())
        before = before.view(-1, len(periods), len(back))
        counts = back < periods[:, None] * (self.times - 1)  # as many places as the block asks for
        loops = ((recent[:, None] == before) & inside) | ~counts
        return loops.all(-1).any(-1), memory
